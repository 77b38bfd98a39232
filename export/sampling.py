"""A token drawn within a graph by random numbers that the caller brings, as the layout `single` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from export.graph import FLOAT, INT64, Graph
from export.likeliest import likeliest


@dataclass(frozen=True)
class Sampling:
    """Names of the inputs that say how to draw.

    Attributes:
        temperature: 0-D float; 0 for the likeliest token.
        top_k: 0-D int64, how many of the likeliest may be drawn; 0 for all.
        top_p: 0-D float, of those the fewest whose probabilities reach it together (arXiv 1904.09751); 1 for all.
        uniform: float [b,n], from 0 to below 1, one for each token; where the temperature is 0 of any shape, unread.
            Fewer rows than b or fewer columns than new tokens are an error, see `checked`.
    """

    temperature: str
    top_k: str
    top_p: str
    uniform: str

    @classmethod
    def inputs(cls, g: Graph) -> Sampling:
        """Declare them."""
        return cls(
            g.input("temperature", FLOAT),
            g.input("top_k", INT64),
            g.input("top_p", FLOAT),
            g.input("uniform", FLOAT, "draws", "n"),
        )

    def checked(self, g: Graph, rows: str, columns: str) -> Sampling:
        """The same with `uniform` cut to its size, which fails where it is smaller.

        A graph cannot say an error in words, but ONNX Runtime names the node that fails. Unchecked, one row of numbers
        would be taken for every row of a batch, and missing columns fail late, or only where an answer is long.

        Args:
            g: where.
            rows, columns: how many are needed, 0-D int64.
        """
        drawn, unread = g.body("numbers"), g.body("no_numbers")
        needed = {
            "uniform_needs_a_row_for_each_row_of_input_ids": (rows, 0),
            "uniform_needs_max_new_tokens_columns": (columns, 1),
        }
        name = self.uniform
        for label, (count, axis) in needed.items():
            # a split into a negative length fails; a slice, or the gather of a range that becomes one, does not
            rest = drawn.op("Sub", drawn.size(name, axis), count)
            lengths = drawn.op("Concat", *(drawn.op("Reshape", n, drawn.ints(1)) for n in (count, rest)), axis=0)
            name, _ = drawn.ops("Split", name, lengths, outputs=[None, None], axis=axis, label=label)
        drawn.output(name, FLOAT, "draws", "n")
        unread.output(unread.op("Identity", self.uniform), FLOAT, "draws", "n")
        uniform = g.op("If", is_drawn(g, self.temperature), then_branch=drawn.proto(), else_branch=unread.proto())
        return replace(self, uniform=uniform)


def is_drawn(g: Graph, temperature: str) -> str:
    """Whether tokens are drawn at a temperature, as a 0-D bool."""
    return g.op("Greater", temperature, g.constant(np.float32(0), "float.0"))


def choose(
    g: Graph, logits: str, vocabulary: int, barred: tuple[Sequence[int], str], sampling: Sampling, turn: str
) -> str:
    """Append the next token [b,1] after logits [b,1,vocabulary]: the likeliest, or one that is drawn.

    The order is transformers': temperature, top_k, top_p; then the distribution's inverse function.

    Args:
        g, logits, vocabulary: where and from what.
        barred: (tokens, the name of a 0-D bool): while that is true, none of the tokens is chosen.
        sampling: how.
        turn: 0-D int64, the column of `uniform`.
    """
    greedy, drawn = g.body("greedy"), g.body("drawn")
    greedy.output(likeliest(greedy, logits, vocabulary, barred=barred), INT64, "b", 1)
    drawn.output(_drawn(drawn, logits, vocabulary, barred, sampling, turn), INT64, "b", 1)
    return g.op("If", is_drawn(g, sampling.temperature), then_branch=drawn.proto(), else_branch=greedy.proto())


def _drawn(
    g: Graph, logits: str, vocabulary: int, barred: tuple[Sequence[int], str], sampling: Sampling, turn: str
) -> str:
    (tokens_barred, when), zero = barred, g.constant(np.float32(0), "float.0")
    wall = g.constant(np.where(np.isin(np.arange(vocabulary), tokens_barred), -np.inf, 0).astype(np.float32), "wall")
    scores = g.op("Add", g.op("Squeeze", logits, g.ints(1)), g.op("Where", when, wall, zero))
    every = g.op("Equal", sampling.top_k, g.scalar(0))
    count = g.op("Where", every, g.scalar(vocabulary), g.op("Min", sampling.top_k, g.scalar(vocabulary)))
    best, tokens = g.ops(
        "TopK", g.op("Div", scores, sampling.temperature), g.op("Reshape", count, g.ints(1)), outputs=[None, None],
        axis=-1,
    )  # fmt: skip
    probability = g.op("Softmax", best, axis=-1)
    likelier = g.op("CumSum", probability, g.scalar(-1), exclusive=1)  # what those before have together
    first = g.op("Equal", g.op("Range", g.scalar(0), count, g.scalar(1)), g.scalar(0))  # is kept however small top_p is
    kept = g.op("Or", g.op("Less", likelier, sampling.top_p), first)
    share = g.op("Where", kept, probability, zero)
    uniform = g.op("Unsqueeze", g.op("Gather", sampling.uniform, turn, axis=1), g.ints(1))
    wanted = g.op("Mul", uniform, g.op("ReduceSum", share, g.ints(-1)))
    passed = g.op("LessOrEqual", g.op("CumSum", share, g.scalar(-1)), wanted)
    place, last = (g.op("ReduceSum", g.op("Cast", some, to=INT64), g.ints(-1)) for some in (passed, kept))
    return g.op("GatherElements", tokens, g.op("Min", place, g.op("Sub", last, g.scalar(1))), axis=-1)

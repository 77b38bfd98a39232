"""Sampling inside a graph, from random numbers that the caller passes (used by the layout `single`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_ft.export.onnx.argmax import argmax
from lora_ft.export.onnx.graph import FLOAT, INT64, Graph

_OPTIONS = {"temperature": FLOAT, "top_k": INT64, "top_p": FLOAT}


@dataclass(frozen=True)
class Sampling:
    """Names of the sampling inputs. All but `uniform` are [1,1], shared by all rows, or [b,1].

    Attributes:
        temperature: Sampling temperature, float; 0 for the likeliest token.
        top_k: Number of likeliest tokens to draw from, int64; 0 for all.
        top_p: Total probability to draw from, float; 1 for all. The fewest top_k tokens that reach it are kept
            (arXiv 1904.09751).
        uniform: Random numbers in [0, 1), float [b,n], one for each new token. At temperature 0 they are not used and
            may have any shape. Fewer rows than b or fewer columns than new tokens are an error; see `checked` and
            `lacking`.
    """

    temperature: str
    top_k: str
    top_p: str
    uniform: str

    @classmethod
    def inputs(cls, g: Graph) -> Sampling:
        """Declare the options as scalars that apply to every row."""
        temperature, top_k, top_p = (
            g.op("Reshape", g.input(name, kind), g.ints(1, 1)) for name, kind in _OPTIONS.items()
        )
        return cls(temperature, top_k, top_p, g.input("uniform", FLOAT, "draws", "n"))

    @classmethod
    def inputs_by_row(cls, g: Graph) -> Sampling:
        """Declare the options as columns [b,1]."""
        temperature, top_k, top_p = (g.input(name, kind, "b", 1) for name, kind in _OPTIONS.items())
        return cls(temperature, top_k, top_p, g.input("uniform", FLOAT, "b", "n"))

    def lacking(self, g: Graph, columns: str) -> tuple[str, Sampling]:
        """Return the rows with too few random numbers, as bool [b,1], and options that make those rows greedy.

        One caller's mistake thus does not fail a batch that others share.

        Args:
            g: Graph to append to.
            columns: Random numbers that each row needs, int64 [b,1].
        """
        most = g.op("Max", columns, g.ints(1))
        short = g.op("Greater", most, g.size(self.uniform, 1))
        lacks = g.op("And", short, g.op("Greater", self.temperature, g.constant(np.float32(0), "float.0")))
        greedy = g.op("Where", lacks, g.constant(np.float32(0), "float.0"), self.temperature)
        return lacks, replace(self, temperature=greedy)

    def checked(self, g: Graph, rows: str, columns: str) -> Sampling:
        """Return the options with `uniform` cut to the needed size. The graph fails if `uniform` is smaller.

        A graph has no error messages, but ONNX Runtime prints the name of the failing node. Without this check, a
        single row of numbers would be used for the whole batch. Missing columns would fail late, or only in long
        answers.

        Args:
            g: Graph to append to.
            rows: Rows needed, 0-D int64.
            columns: Columns needed, 0-D int64.
        """
        drawn, unread = g.body("numbers"), g.body("no_numbers")
        needed = {
            "uniform_needs_a_row_for_each_row_of_input_ids": (rows, 0),
            "uniform_needs_max_new_tokens_columns": (columns, 1),
        }
        name = self.uniform
        for label, (count, axis) in needed.items():
            # a Split with a negative length fails; a Slice, or a Gather of a range that is turned into one, does not
            remainder = drawn.op("Sub", drawn.size(name, axis), count)
            lengths = drawn.op("Concat", *(drawn.op("Reshape", n, drawn.ints(1)) for n in (count, remainder)), axis=0)
            name, _ = drawn.ops("Split", name, lengths, outputs=[None, None], axis=axis, label=label)
        drawn.output(name, FLOAT, "draws", "n")
        unread.output(unread.op("Identity", self.uniform), FLOAT, "draws", "n")
        uniform = g.op("If", is_drawn(g, self.temperature), then_branch=drawn.proto(), else_branch=unread.proto())
        return replace(self, uniform=uniform)


def is_drawn(g: Graph, temperature: str) -> str:
    """Append a 0-D bool that is true if any row has a temperature above 0."""
    highest = g.op("ReduceMax", temperature, keepdims=0)
    return g.op("Greater", highest, g.constant(np.float32(0), "float.0"))


def choose(
    g: Graph, logits: str, vocabulary: int, barred: tuple[Sequence[int], str], sampling: Sampling, turn: str
) -> str:
    """Append the next token [b,1]: the likeliest token, or a drawn one in rows with a temperature.

    Options apply in the order of transformers: temperature, top_k, top_p. The token is drawn by inverting the
    cumulative distribution.

    Args:
        g: Graph to append to.
        logits: Name of the logits, float [b,1,vocabulary].
        vocabulary: Size of the vocabulary.
        barred: Tokens, and the name of a bool, 0-D or [b,1,1]. None of the tokens is chosen if it is true.
        sampling: Sampling options.
        turn: Column of `uniform`, 0-D int64.
    """
    greedy, drawn = g.body("greedy"), g.body("drawn")
    greedy.output(argmax(greedy, logits, vocabulary, barred=barred), INT64, "b", 1)
    draws = drawn.op("Greater", sampling.temperature, drawn.constant(np.float32(0), "float.0"))
    tokens = _drawn(drawn, logits, vocabulary, barred, sampling, turn, draws)
    drawn.output(drawn.op("Where", draws, tokens, argmax(drawn, logits, vocabulary, barred=barred)), INT64, "b", 1)
    return g.op("If", is_drawn(g, sampling.temperature), then_branch=drawn.proto(), else_branch=greedy.proto())


def _drawn(
    g: Graph, logits: str, vocabulary: int, barred: tuple[Sequence[int], str], sampling: Sampling, turn: str, draws: str
) -> str:
    """Append a drawn token [b,1]. Ignore it in rows with a false `draws` [b,1] or [1,1].

    Rows have different top_k, so TopK returns the largest number of tokens and each row masks the excess.
    """
    (tokens_barred, when), zero = barred, g.constant(np.float32(0), "float.0")
    wall = g.constant(np.where(np.isin(np.arange(vocabulary), tokens_barred), -np.inf, 0).astype(np.float32), "wall")
    scores = g.op("Squeeze", g.op("Add", logits, g.op("Where", when, wall, zero)), g.ints(1))
    every = g.op("LessOrEqual", sampling.top_k, g.scalar(0))
    count = g.op("Where", every, g.scalar(vocabulary), g.op("Min", sampling.top_k, g.scalar(vocabulary)))
    largest = g.op("ReduceMax", g.op("Where", draws, count, g.scalar(1)), keepdims=0)
    temperature = g.op("Where", draws, sampling.temperature, g.constant(np.float32(1), "float.1"))
    best, tokens = g.ops(
        "TopK", g.op("Div", scores, temperature), g.op("Reshape", largest, g.ints(1)), outputs=[None, None], axis=-1
    )
    places = g.op("Range", g.scalar(0), largest, g.scalar(1))
    in_top_k = g.op("Less", places, count)
    probability = g.op("Softmax", g.op("Where", in_top_k, best, g.constant(np.float32(-np.inf), "float.-inf")), axis=-1)
    likelier = g.op("CumSum", probability, g.scalar(-1), exclusive=1)  # total probability of likelier tokens
    first = g.op("Equal", places, g.scalar(0))  # a candidate even if top_p is tiny
    candidates = g.op("And", in_top_k, g.op("Or", g.op("Less", likelier, sampling.top_p), first))
    share = g.op("Where", candidates, probability, zero)
    # a greedy row may continue past the last column of random numbers
    column = g.op("Min", turn, g.op("Sub", g.size(sampling.uniform, 1), g.scalar(1)))
    uniform = g.op("Unsqueeze", g.op("Gather", sampling.uniform, column, axis=1), g.ints(1))
    threshold = g.op("Mul", uniform, g.op("ReduceSum", share, g.ints(-1)))
    passed = g.op("LessOrEqual", g.op("CumSum", share, g.scalar(-1)), threshold)
    place, last = (g.op("ReduceSum", g.op("Cast", mask, to=INT64), g.ints(-1)) for mask in (passed, candidates))
    return g.op("GatherElements", tokens, g.op("Min", place, g.op("Sub", last, g.scalar(1))), axis=-1)

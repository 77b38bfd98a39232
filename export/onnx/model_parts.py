"""The interface between a family and the graphs: the parts of a model, and the weights they are built from.

`graphs` and the layouts assemble graphs from these parts and know no family. A family implements `ModelParts` (T5 in
`t5`) and returns it from `lora_ft.export.families.Family.graph_parts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.onnx.graph import Graph


class Weights(Protocol):
    """Float32 weights by name, in torch's layout (linear layers are [out, in])."""

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> np.ndarray: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def peak(self, name: str) -> float:
        """Return the largest magnitude of a linear layer's input in calibration, or 0 if unknown."""

    def moments(self, layer: str) -> np.ndarray | None:
        """Return sums of products of a linear layer's inputs in calibration [in, in], or None if unknown."""


@dataclass(frozen=True)
class KeyValue:
    """Names of the keys and values of one layer, each [b, heads, length, d_kv]."""

    key: str
    value: str


Calls = Literal["any", "step", "draft"]


@dataclass(frozen=True)
class InPlace:
    """A cache with spare capacity that a step writes into, so that nothing is copied.

    Attributes:
        lengths: Number of tokens in each row of the cache, int64 [b], or [1] if all are equal. New keys and values are
            written after them if the caller binds `presents` to the memory of `past`.
        calls: Calls that the graph is for:

            - "any": any number of tokens per row.
            - "step": a single token per row, any number of tokens of a single row, or the first call. This is faster if
              d_kv is a multiple of 8. Both are conditions of ONNX Runtime's GroupQueryAttention.
            - "draft": several tokens per row, after the first call, each with the bits of a call of "step" for it
              alone. Each row has its own source.
    """

    lengths: str
    calls: Calls = "any"


class ModelParts(Protocol):
    """Parts of one encoder-decoder model, which a family appends to graphs.

    Attributes:
        architecture: Architecture of the model.
    """

    architecture: Architecture

    def portable(self) -> ModelParts:
        """Return the model in formats with equal results on every processor, regardless of session options."""

    def encode(self, g: Graph, ids: str, mask: str) -> str:
        """Return the encoder's last hidden state [b,s,d_model] for ids [b,s] and mask [b,s], both int64."""

    def cross(self, g: Graph, hidden: str, outputs: Sequence[KeyValue]) -> None:
        """Append the cross-attention keys and values of the encoder's last hidden state, as `outputs`."""

    def decode(
        self,
        g: Graph,
        ids: str,
        mask: str,
        past: Sequence[KeyValue],
        cross: Sequence[KeyValue],
        presents: Sequence[KeyValue],
        in_place: InPlace | None = None,
    ) -> str:
        """Return the decoder's last hidden state [b,q,d_model].

        Args:
            g: Graph to append to.
            ids: Tokens [b,q], int64.
            mask: Mask of the sources [sources,s], int64.
            past: Self-attention keys and values of the previous tokens, of length p.
            cross: Cross-attention keys and values of the sources.
            presents: Names for `past` with the new tokens appended, of length p+q.
            in_place: Write into the memory of `past`. Rows b = sources * k then share a source, k consecutive rows
                each. Otherwise each row has its own source.
        """

    def head(self, g: Graph, hidden: str, output: str | None = None, tokens: Sequence[int] = ()) -> str:
        """Return the logits [b,q,vocabulary] of the decoder's last hidden state, or those [b,q,n] of some tokens."""

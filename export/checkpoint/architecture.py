"""The architecture of an encoder-decoder model, as described by its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.families import Family, family_of


@dataclass(frozen=True)
class Architecture:
    """The architecture of an encoder-decoder model.

    Attributes:
        kind: `model_type` in config.json.
        layers, decoder_layers, heads, d_kv, d_ff, d_model, vocabulary: Sizes.
        gated, activation: Form of the feed-forward layers; activations are "relu", "gelu_new" and "silu".
        epsilon: Epsilon of the norms.
        buckets, max_distance: Resolution and reach of the relative position bias.
        bias_per_layer: Whether every layer has its own position bias (UMT5), or only the first.
        output_scale: Factor of the last hidden state before the head.
        special: Special tokens, which are constants in the graphs.
    """

    kind: str
    layers: int
    decoder_layers: int
    heads: int
    d_kv: int
    d_ff: int
    d_model: int
    vocabulary: int
    gated: bool
    activation: str
    epsilon: float
    buckets: int
    max_distance: int
    bias_per_layer: bool
    output_scale: float
    special: SpecialTokens

    @property
    def width(self) -> int:
        """Width of all heads together. It may differ from d_model."""
        return self.heads * self.d_kv

    @property
    def family(self) -> Family:
        """Family of the model."""
        return family_of(self.kind)

    @classmethod
    def read(cls, config: Mapping[str, Any], folder: Path) -> Architecture:
        """Return the architecture of the checkpoint in `folder`, whose config.json is `config`.

        Raises:
            UsageError: The family or an option of it is not supported, or a size is missing or out of range.
        """
        return family_of(config.get("model_type"), folder).read_architecture(config, folder)

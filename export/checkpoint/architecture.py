"""The shape of an encoder-decoder, as its config.json describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.core.errors import UsageError
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.families import MODEL_TYPES, Family, family_of

T5_TOKENS = SpecialTokens(start=0, ends=(1,), pad=0)


@dataclass(frozen=True)
class Architecture:
    """The shape of one encoder-decoder.

    Attributes:
        kind: `model_type` in config.json.
        layers, decoder_layers, heads, d_kv, d_ff, d_model, vocabulary: Sizes.
        gated, activation: Form of the feed-forward layers; activations are "relu", "gelu_new" and "silu".
        epsilon: Epsilon of the norms.
        buckets, max_distance: Resolution and reach of the relative position bias.
        bias_per_layer: Whether every layer has a bias of its own (UMT5), not the first alone.
        output_scale: Factor of the last hidden state before the head.
        special: Special tokens, which are constants in its graphs.
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
    special: SpecialTokens = T5_TOKENS

    @property
    def width(self) -> int:
        """Width of all heads side by side; it need not be d_model."""
        return self.heads * self.d_kv

    @property
    def family(self) -> Family:
        """Family of the model, which knows its layers."""
        return family_of(self.kind)

    @classmethod
    def read(cls, config: Mapping[str, Any], folder: Path) -> Architecture:
        """Return the architecture of the checkpoint in `folder`, whose config.json is `config`.

        Raises:
            UsageError: The family or its feed-forward layer is not supported, or a size is missing or out of range.
        """
        kind = config.get("model_type")
        if kind not in MODEL_TYPES:
            raise UsageError(
                f"{folder}: the model type '{kind}' is not supported (supported: {', '.join(MODEL_TYPES)})",
                "use a model of the T5 family: FLAN-T5, T5 1.1 and ByT5 are t5",
            )
        return family_of(kind).read_architecture(config, folder)

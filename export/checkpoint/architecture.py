"""What a config.json says of a T5: which of the family it is, its sizes, and how its head is scaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.core.errors import UsageError
from lora_ft.core.special_tokens import SpecialTokens

T5_TOKENS = SpecialTokens(start=0, ends=(1,), pad=0)
FAMILY = ("t5", "mt5", "umt5")  # ByT5, T5 1.1, FLAN-T5 and UL2 call themselves t5
# feed_forward_proj -> (gated, activation); transformers reads "gated-gelu" as the tanh form "gelu_new"
_FEED_FORWARD = {
    "relu": (False, "relu"),
    "gated-relu": (True, "relu"),
    "gated-gelu": (True, "gelu_new"),
    "gated-silu": (True, "silu"),
}
_MORE_SIZES = ("num_decoder_layers", "relative_attention_num_buckets", "relative_attention_max_distance")
_LARGE = 2**24
_LARGEST = {"num_layers": 1_000, "num_decoder_layers": 1_000}  # T5's largest has 24
_SIZES = ("num_layers", "num_heads", "d_kv", "d_ff", "d_model", "vocab_size")


@dataclass(frozen=True)
class Architecture:
    """The shape of one encoder-decoder.

    Attributes:
        kind: model_type, of FAMILY.
        layers, decoder_layers, heads, d_kv, d_ff, d_model, vocabulary: sizes.
        gated, activation: of the feed-forward layers; "relu", "gelu_new" or "silu".
        epsilon: of the norms.
        buckets, max_distance: of the relative position bias.
        bias_per_layer: every layer has a bias of its own (UMT5), not the first alone.
        output_scale: factor of the last hidden state before the head.
        special: Special tokens, which its graphs know.
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
        """Of all heads side by side; it need not be d_model."""
        return self.heads * self.d_kv

    @classmethod
    def read(cls, config: Mapping[str, Any], folder: Path) -> Architecture:
        """The architecture of the checkpoint in `folder`, whose config.json is `config`.

        Raises:
            UsageError: it is of another family, has another feed-forward layer, or a size is missing.
        """
        kind = config.get("model_type")
        if kind not in FAMILY:
            raise UsageError(
                f"{folder} holds a model of type '{kind}'",
                f"only the T5 family is supported: {', '.join(FAMILY)} (FLAN-T5, T5 1.1 and ByT5 are t5)",
            )
        forward = config.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")
        if not isinstance(forward, str) or forward not in _FEED_FORWARD:
            raise UsageError(
                f"{folder}: feed_forward_proj '{forward}' is not supported", f"supported: {', '.join(_FEED_FORWARD)}"
            )
        missing = [key for key in _SIZES if config.get(key) is None]
        if missing:
            raise UsageError(f"{folder / 'config.json'} is missing {', '.join(missing)}", "copy it again")
        for key in (*_SIZES, *_MORE_SIZES):
            value = config.get(key)
            if key == "num_decoder_layers" and not value:  # as many as the encoder
                continue
            if value is not None and not (type(value) is int and 1 <= value <= _LARGEST.get(key, _LARGE)):
                raise UsageError(
                    f"{folder / 'config.json'}: {key} is out of range (got {value!r}, "
                    f"not a number from 1 to {_LARGEST.get(key, _LARGE):,})",
                    "copy it again",
                )
        epsilon = config.get("layer_norm_epsilon", 1e-6)
        if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
            raise UsageError(
                f"{folder / 'config.json'}: layer_norm_epsilon is out of range (got {epsilon!r}, not from 0 to 1)",
                "copy it again",
            )
        gated, activation = _FEED_FORWARD[forward]
        return cls(
            kind=kind,
            layers=config["num_layers"],
            decoder_layers=config.get("num_decoder_layers") or config["num_layers"],
            heads=config["num_heads"],
            d_kv=config["d_kv"],
            d_ff=config["d_ff"],
            d_model=config["d_model"],
            vocabulary=config["vocab_size"],
            gated=gated,
            activation=activation,
            epsilon=epsilon,
            buckets=config.get("relative_attention_num_buckets", 32),
            max_distance=config.get("relative_attention_max_distance", 128),
            bias_per_layer=kind == "umt5",
            output_scale=config["d_model"] ** -0.5 if _is_scaled(kind, config) else 1.0,
        )


def _is_scaled(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether the hidden state is scaled before the head, as it is where head and embedding are one matrix.

    transformers 5 writes `scale_decoder_outputs` for t5; before, `tie_word_embeddings` meant the same (and more).
    For the other two it forces the flag of tying to True when it saves, then scales umt5 by it and mt5 never.
    """
    if "scale_decoder_outputs" in config:
        return bool(config["scale_decoder_outputs"])
    if kind == "mt5" and str(config.get("transformers_version", "")).startswith("5."):
        return False
    return bool(config.get("tie_word_embeddings", kind != "mt5"))

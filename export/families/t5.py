"""T5's layers by name: where each one stands in a block, its shape, its kind, and which layers share an input.

Names are those of transformers' T5ForConditionalGeneration. A block of the encoder has self-attention and a
feed-forward layer, one of the decoder has cross-attention between the two; each is one numbered `layer` with a norm
before it:

    encoder.block.<i>.layer.{0: SelfAttention, 1: DenseReluDense}
    decoder.block.<i>.layer.{0: SelfAttention, 1: EncDecAttention, 2: DenseReluDense}

Layer names here have no `.weight`; names of tensors have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_ft.core.errors import UsageError

if TYPE_CHECKING:
    from lora_ft.export.checkpoint.architecture import Architecture
    from lora_ft.export.onnx.quantization import WeightFormat
    from lora_ft.export.onnx.t5 import T5, Weights

Stack = Literal["encoder", "decoder"]

MODEL_TYPES: tuple[str, ...] = ("t5", "mt5", "umt5")  # ByT5, T5 1.1, FLAN-T5 and UL2 call themselves t5
EMBEDDING, HEAD = "shared", "lm_head"
COPIES: tuple[str, ...] = (
    "encoder.embed_tokens",
    "decoder.embed_tokens",
)  # of the embedding, as some savers write them
# A bias of cross-attention that the first T5 checkpoints have, and no version of transformers ever used.
UNUSED = frozenset({"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"})
# Layers whose outlying inputs are rows (whole tokens), not channels, so that no fixed scale serves them. With one,
# these two are nine tenths of what int8 loses on DialogSum: a divergence of 0.006 from fp32's next tokens instead of
# 0.0006.
SCALED_BY_ROW: tuple[str, ...] = ("wo", HEAD)
_CROSS = "EncDecAttention"
# feed_forward_proj -> (gated, activation); transformers reads "gated-gelu" as the tanh form "gelu_new"
_FEED_FORWARD = {
    "relu": (False, "relu"),
    "gated-relu": (True, "relu"),
    "gated-gelu": (True, "gelu_new"),
    "gated-silu": (True, "silu"),
}
_MORE_SIZES = ("num_decoder_layers", "relative_attention_num_buckets", "relative_attention_max_distance")
_LARGE = 2**24
_LARGEST = {"num_layers": 1_000, "num_decoder_layers": 1_000}  # the largest T5 has 24
_SIZES = ("num_layers", "num_heads", "d_kv", "d_ff", "d_model", "vocab_size")


def self_attention(stack: Stack, block: int) -> str:
    """Return the name of a block's self-attention, whose layers are its `.q`, `.k`, `.v` and `.o`."""
    return f"{stack}.block.{block}.layer.0.SelfAttention"


def cross_attention(block: int) -> str:
    """Return the name of a decoder block's attention to the source."""
    return f"decoder.block.{block}.layer.1.{_CROSS}"


def feed_forward(stack: Stack, block: int) -> str:
    """Return the name of a block's feed-forward layer."""
    return f"{stack}.block.{block}.layer.{2 if stack == 'decoder' else 1}.DenseReluDense"


def norm_before(part: str) -> str:
    """Return the name of the norm before an attention or a feed-forward layer."""
    return f"{part.rpartition('.')[0]}.layer_norm"


def final_norm(stack: Stack) -> str:
    """Return the name of the norm after a stack's last block."""
    return f"{stack}.final_layer_norm"


def position_bias(stack: Stack, block: int) -> str:
    """Return the name of the table of relative position biases in a block's self-attention."""
    return f"{self_attention(stack, block)}.relative_attention_bias"


def inner_layers(architecture: Architecture) -> tuple[str, ...]:
    """Return the endings of a feed-forward layer's first products."""
    return ("wi_0", "wi_1") if architecture.gated else ("wi",)


def projections(attention: str, kinds: str = "qkv") -> tuple[str, ...]:
    """Return the names of an attention's projections, one for each letter of `kinds`."""
    return tuple(f"{attention}.{kind}" for kind in kinds)


def cross_projections(architecture: Architecture) -> list[str]:
    """Return the projections of the encoder's output onto every decoder block's keys and values."""
    return [name for block in range(architecture.decoder_layers) for name in projections(cross_attention(block), "kv")]


def layer_kind(layer: str) -> str:
    """Return the kind of a layer, by which precisions store it: encoder, decoder, head or embedding.

    The cross-attention's keys and values are computed once a source, like the encoder.
    """
    if layer in (HEAD, EMBEDDING):
        return "head" if layer == HEAD else "embedding"
    once = layer.startswith("encoder.") or layer.endswith((f"{_CROSS}.k", f"{_CROSS}.v"))
    return "encoder" if once else "decoder"


def tensor_shapes(architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every tensor but the embedding and the head."""
    a = architecture
    stacks: tuple[tuple[Stack, int], ...] = (("encoder", a.layers), ("decoder", a.decoder_layers))
    for stack, blocks in stacks:
        for block in range(blocks):
            attentions = [self_attention(stack, block)]
            attentions += [cross_attention(block)] if stack == "decoder" else []
            for attention in attentions:
                yield from ((f"{layer}.weight", (a.width, a.d_model)) for layer in projections(attention))
                yield f"{attention}.o.weight", (a.d_model, a.width)
                yield f"{norm_before(attention)}.weight", (a.d_model,)
            if block == 0 or a.bias_per_layer:
                yield f"{position_bias(stack, block)}.weight", (a.buckets, a.heads)
            forward = feed_forward(stack, block)
            for name in inner_layers(a):
                yield f"{forward}.{name}.weight", (a.d_ff, a.d_model)
            yield f"{forward}.wo.weight", (a.d_model, a.d_ff)
            yield f"{norm_before(forward)}.weight", (a.d_model,)
        yield f"{final_norm(stack)}.weight", (a.d_model,)


def shared_inputs(architecture: Architecture) -> Iterator[tuple[str, list[str]]]:
    """Yield each norm or layer whose output channels can be scaled, and the layers that read them.

    Dividing an output channel of the first and multiplying the same input channel of the others leaves the function as
    it is: see `smoothquant`.
    """
    a = architecture
    stacks: tuple[tuple[Stack, int], ...] = (("encoder", a.layers), ("decoder", a.decoder_layers))
    for stack, blocks in stacks:
        for block in range(blocks):
            own, cross, forward = self_attention(stack, block), cross_attention(block), feed_forward(stack, block)
            yield norm_before(own), list(projections(own))
            yield f"{own}.v", [f"{own}.o"]
            if stack == "decoder":
                yield norm_before(cross), [f"{cross}.q"]
                yield f"{cross}.v", [f"{cross}.o"]
            inner = inner_layers(a)
            yield norm_before(forward), [f"{forward}.{name}" for name in inner]
            yield f"{forward}.{inner[-1]}", [f"{forward}.wo"]
    yield final_norm("encoder"), cross_projections(a)
    yield final_norm("decoder"), [HEAD]


def read_architecture(config: Mapping[str, Any], folder: Path) -> Architecture:
    """Return the architecture that a config.json describes.

    Raises:
        UsageError: The feed-forward layer is not supported, or a size is missing or out of range.
    """
    from lora_ft.export.checkpoint.architecture import Architecture

    kind = config["model_type"]
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
    return Architecture(
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


def graph_parts(architecture: Architecture, weights: Weights, formats: Callable[[str], WeightFormat]) -> T5:
    """Return the builder of a model's graph parts; see `lora_ft.export.onnx.t5`."""
    from lora_ft.export.onnx.t5 import T5

    return T5(architecture, weights, formats)


def _is_scaled(kind: str, config: Mapping[str, Any]) -> bool:
    """Return whether the hidden state is scaled before the head, as it is if head and embedding are one matrix.

    transformers 5 writes `scale_decoder_outputs` for t5; before, `tie_word_embeddings` meant the same (and more).
    For mt5 and umt5 it saves `tie_word_embeddings` as true in any case, then scales umt5 by it, and mt5 never.
    """
    if "scale_decoder_outputs" in config:
        return bool(config["scale_decoder_outputs"])
    if kind == "mt5" and str(config.get("transformers_version", "")).startswith("5."):
        return False
    return bool(config.get("tie_word_embeddings", kind != "mt5"))

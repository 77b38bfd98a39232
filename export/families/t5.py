"""T5's layers by name: position in a block, shape, kind, and layers that share an input.

Names are those of transformers' T5ForConditionalGeneration. An encoder block has self-attention and a feed-forward
layer. A decoder block has cross-attention between the two. Each of them is a numbered `layer` with a norm before it:

    encoder.block.<i>.layer.{0: SelfAttention, 1: DenseReluDense}
    decoder.block.<i>.layer.{0: SelfAttention, 1: EncDecAttention, 2: DenseReluDense}

Layer names have no `.weight`, tensor names do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_ft.core.errors import UsageError
from lora_ft.core.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from lora_ft.export.checkpoint.architecture import Architecture
    from lora_ft.export.onnx.model_parts import ModelParts, Weights
    from lora_ft.export.onnx.quantization import WeightFormat

Stack = Literal["encoder", "decoder"]

NAME = "T5"
MODEL_TYPES: tuple[str, ...] = ("t5", "mt5", "umt5")  # ByT5, T5 1.1, FLAN-T5 and UL2 have the type t5
EMBEDDING, HEAD = "shared", "lm_head"
_TOKENS = SpecialTokens(start=0, ends=(1,), pad=0)  # default of configs
COPIES: tuple[str, ...] = ("encoder.embed_tokens", "decoder.embed_tokens")
# A bias of cross-attention that the first T5 checkpoints contain but no version of transformers uses.
UNUSED = frozenset({"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"})
# The outliers in the inputs of these layers are rows (whole tokens), not channels, so no fixed scale fits. With fixed
# scales, these two layers cause nine tenths of the loss of int8 on DialogSum: the next tokens diverge from fp32 by
# 0.006 instead of 0.0006.
SCALED_BY_ROW: tuple[str, ...] = ("wo", HEAD)
KEPT_FP32: tuple[str, ...] = (".wo",)  # huggingface/transformers#20287, `_keep_in_fp32_modules`
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
    """Return the name endings of a feed-forward layer's first projections."""
    return ("wi_0", "wi_1") if architecture.gated else ("wi",)


def projections(attention: str, kinds: str = "qkv") -> tuple[str, ...]:
    """Return the names of an attention's projections, one for each letter of `kinds`."""
    return tuple(f"{attention}.{kind}" for kind in kinds)


def cross_projections(architecture: Architecture) -> list[str]:
    """Return the projections of the encoder's output onto every decoder block's keys and values."""
    return [name for block in range(architecture.decoder_layers) for name in projections(cross_attention(block), "kv")]


def layer_kind(layer: str) -> str:
    """Return the kind of a layer: encoder, decoder, head or embedding. Precisions have a format per kind.

    The cross-attention keys and values are computed once per source, so they count as encoder layers.
    """
    if layer in (HEAD, EMBEDDING):
        return "head" if layer == HEAD else "embedding"
    once = layer.startswith("encoder.") or layer.endswith((f"{_CROSS}.k", f"{_CROSS}.v"))
    return "encoder" if once else "decoder"


def tensor_shapes(architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (name, shape) of every tensor except the embedding and the head."""
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
    """Yield each norm or layer whose output channels can be scaled, with the layers that read them.

    Dividing an output channel of the first and multiplying the same input channel of the readers does not change the
    function; see `smoothquant`.
    """
    a = architecture
    stacks: tuple[tuple[Stack, int], ...] = (("encoder", a.layers), ("decoder", a.decoder_layers))
    for stack, blocks in stacks:
        for block in range(blocks):
            attention, cross, forward = self_attention(stack, block), cross_attention(block), feed_forward(stack, block)
            yield norm_before(attention), list(projections(attention))
            yield f"{attention}.v", [f"{attention}.o"]
            if stack == "decoder":
                yield norm_before(cross), [f"{cross}.q"]
                yield f"{cross}.v", [f"{cross}.o"]
            inner = inner_layers(a)
            yield norm_before(forward), [f"{forward}.{name}" for name in inner]
            yield f"{forward}.{inner[-1]}", [f"{forward}.wo"]
    yield final_norm("encoder"), cross_projections(a)
    yield final_norm("decoder"), [HEAD]


def norms(architecture: Architecture, stack: Stack) -> list[str]:
    """Return the norms of a stack in the order of computation: those of each block, then the final one."""
    blocks = [
        (
            self_attention(stack, block),
            *([cross_attention(block)] if stack == "decoder" else []),
            feed_forward(stack, block),
        )
        for block in range(architecture.layers if stack == "encoder" else architecture.decoder_layers)
    ]
    return [*(norm_before(part) for parts in blocks for part in parts), final_norm(stack)]


def biases(architecture: Architecture, stack: Stack) -> list[str]:
    """Return the tables of position bias of a stack: of every block, or of the first, which all use."""
    layers = architecture.layers if stack == "encoder" else architecture.decoder_layers
    return [position_bias(stack, i) for i in range(layers if architecture.bias_per_layer else 1)]


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
            f"{folder}: feed_forward_proj '{forward}' is not supported (supported: {', '.join(_FEED_FORWARD)})",
            "use another base",
        )
    missing = [key for key in _SIZES if config.get(key) is None]
    if missing:
        raise UsageError(f"{folder / 'config.json'} is missing {', '.join(missing)}", "copy it again")
    for key in (*_SIZES, *_MORE_SIZES):
        value = config.get(key)
        if key == "num_decoder_layers" and not value:  # default: as many as the encoder
            continue
        if value is not None and not (type(value) is int and 1 <= value <= _LARGEST.get(key, _LARGE)):
            raise UsageError(
                f"{folder / 'config.json'}: {key} is out of range (got {value!r}, "
                f"expected 1 to {_LARGEST.get(key, _LARGE):,})",
                "copy it again",
            )
    epsilon = config.get("layer_norm_epsilon", 1e-6)
    if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
        raise UsageError(
            f"{folder / 'config.json'}: layer_norm_epsilon is out of range (got {epsilon!r}, expected 0 to 1)",
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
        special=_TOKENS,
        output_scale=config["d_model"] ** -0.5 if _is_scaled(kind, config) else 1.0,
    )


def graph_parts(architecture: Architecture, weights: Weights, formats: Callable[[str], WeightFormat]) -> ModelParts:
    """Return the parts of a model; see `lora_ft.export.onnx.t5`."""
    from lora_ft.export.onnx.t5 import T5

    return T5(architecture, weights, formats)


def _is_scaled(kind: str, config: Mapping[str, Any]) -> bool:
    """Return whether the hidden state is scaled before the head, as it is if head and embedding are the same matrix.

    transformers 5 writes `scale_decoder_outputs` for t5. Earlier versions used `tie_word_embeddings` for this too. For
    mt5 and umt5, transformers 5 always saves `tie_word_embeddings` as true, scales umt5 by it, and never scales mt5.
    """
    if "scale_decoder_outputs" in config:
        return bool(config["scale_decoder_outputs"])
    if kind == "mt5" and str(config.get("transformers_version", "")).startswith("5."):
        return False
    return bool(config.get("tie_word_embeddings", kind != "mt5"))

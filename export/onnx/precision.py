"""Precisions: which storage each kind of layer has. `NAMED` are those with a name; any mixture can be written out."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from lora_ft.core.errors import UsageError
from lora_ft.export.onnx.quantization import WEIGHT_FORMATS, WeightFormat

KINDS = ("encoder", "decoder", "head", "embedding")


@dataclass(frozen=True)
class Precision:
    """Storages by kind of layer.

    Attributes:
        encoder: of the encoder and the cross-attention keys and values, computed once for a source.
        decoder: of the decoder's layers, computed for every token.
        head: of the last product, onto the vocabulary; 43 % of the bytes of a step of FLAN-T5-small.
        embedding: of the table that both stacks look tokens up in.
    """

    encoder: str
    decoder: str
    head: str
    embedding: str

    def storage(self, layer: str) -> WeightFormat:
        """The storage of a layer, by the name of its weight."""
        if layer in ("lm_head", "shared"):
            return WEIGHT_FORMATS[self.head if layer == "lm_head" else self.embedding]
        once = layer.startswith("encoder.") or layer.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        return WEIGHT_FORMATS[self.encoder if once else self.decoder]

    @property
    def exact(self) -> bool:
        """Whether nothing is rounded."""
        return self == FP32

    def __str__(self) -> str:
        """The name, or where it has none what `parse` reads."""
        names = [name for name, precision in NAMED.items() if precision == self]
        return names[0] if names else ",".join(f"{kind}={storage}" for kind, storage in asdict(self).items())


FP32 = Precision("fp32", "fp32", "fp32", "fp32")
NAMED = {
    "fp32": FP32,
    "fp16": Precision("fp16", "fp16", "fp16", "fp16"),
    "bf16": Precision("bf16", "bf16", "bf16", "bf16"),
    "int8": Precision("int8", "int8", "int8", "int8"),
    "w8": Precision("w8", "w8", "w8", "int8"),
    "w4": Precision("w4", "w4", "w4", "int8"),
    "int8-w8": Precision("int8", "w8", "w8", "int8"),
    "int8-w4": Precision("int8", "w4g128", "w8", "int8"),
    "int8-w4g128": Precision("int8", "w4g128", "w4g128", "int8"),
}


def candidates(provider: str) -> list[Precision]:
    """Those with a name that are worth trying on a provider ("cpu" or "cuda"): half floats only pay on GPUs."""
    return [NAMED[name] for name in NAMED if name == "fp32" or (name in ("fp16", "bf16")) == (provider == "cuda")]


def parse(text: str) -> Precision:
    """A precision from its name, or from `kind=storage,…` (kinds left out are fp32).

    Raises:
        UsageError: there is no such name, kind or storage.
    """
    if text in NAMED:
        return NAMED[text]
    chosen = dict.fromkeys(KINDS, "fp32")
    for item in text.split(","):
        kind, _, storage = item.partition("=")
        if kind not in KINDS or storage not in WEIGHT_FORMATS:
            raise UsageError(
                f"there is no precision {text!r}",
                f"one of {', '.join(NAMED)}, or a mixture such as encoder=int8,decoder=w4,head=w4,embedding=int8 "
                f"(storages: {', '.join(WEIGHT_FORMATS)})",
            )
        chosen[kind] = storage
    return Precision(**chosen)

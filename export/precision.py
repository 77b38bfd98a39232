"""Weight formats and precisions: the single source for quantization, provider checks, the roofline and help texts.

A weight format describes how a matrix is stored: its bits, the group of weights that share a scale, and the providers
for which ONNX Runtime has kernels. A precision names a format for each kind of layer, because layers have different
bottlenecks. The encoder is compute-bound and benefits from 8-bit arithmetic (`int8`). The decoder processes one token
per step, is memory-bound and benefits from fewer bytes (`w8`, `w4`). `NAMED` contains the precisions with a name; any
other mixture can be spelled out. This module does not need the package onnx, so the runtime can import it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields

from lora_ft.core.errors import UsageError

_CPU, _CUDA = "cpu", "cuda"


@dataclass(frozen=True)
class Format:
    """Storage and arithmetic of a layer's weights.

    Attributes:
        name: Name in precisions, manifests and graphs.
        bits: Bits per weight.
        group: Number of consecutive inputs of an output that share a scale; 0 for one scale per output, or for none.
        providers: Providers with kernels for the format. Integer products run on processors, bfloat16 on GPUs.
        independent: Providers on which a row has equal bits whatever runs with it: other rows, padding, or further
            tokens of its own. Elsewhere kernels change with the number of rows.
        summary: Description for tables.
    """

    name: str
    bits: int
    group: int
    providers: tuple[str, ...]
    independent: tuple[str, ...]
    summary: str

    @property
    def bytes(self) -> float:
        """Bytes per weight, without scales."""
        return self.bits / 8


FORMATS = {
    each.name: each
    for each in (
        Format("fp32", 32, 0, (_CPU, _CUDA), (_CPU,), "32-bit floats"),
        Format("fp16", 16, 0, (_CPU, _CUDA), (), "16-bit floats; norms, attention and `wo` stay fp32"),
        Format("bf16", 16, 0, (_CUDA,), (), "bfloat16; norms, attention and `wo` stay fp32"),
        Format("int8", 8, 0, (_CPU,), (_CPU,), "8-bit weights and activations, 8-bit arithmetic"),
        Format("w8", 8, 128, (_CPU,), (), "8-bit weights in groups of 128"),
        Format("w4", 4, 32, (_CPU,), (), "4-bit weights in groups of 32"),
        Format("w4g128", 4, 128, (_CPU,), (), "4-bit weights in groups of 128: faster than `w4`, rounds more coarsely"),
    )
}


@dataclass(frozen=True)
class Precision:
    """Names of weight formats by kind of layer.

    Attributes:
        encoder: Format of the encoder and of the cross-attention keys and values, computed once per source.
        decoder: Format of the decoder's layers, computed for every token.
        head: Format of the projection onto the vocabulary, 43 % of the bytes of a step of FLAN-T5-small.
        embedding: Format of the token embedding of both stacks.
    """

    encoder: str
    decoder: str
    head: str
    embedding: str

    @property
    def providers(self) -> tuple[str, ...]:
        """Providers with kernels for all formats, in the order of `PROVIDERS`."""
        return tuple(name for name in PROVIDERS if all(name in FORMATS[each].providers for each in astuple(self)))

    @property
    def independent(self) -> tuple[str, ...]:
        """Providers on which rows are independent in all formats, so neither batches nor drafts change an answer."""
        return tuple(name for name in PROVIDERS if all(name in FORMATS[each].independent for each in astuple(self)))

    def items(self) -> Iterator[tuple[str, str]]:
        """Yield (kind of layer, name of the format)."""
        yield from zip(KINDS, astuple(self), strict=True)

    def __str__(self) -> str:
        """Return the name, or the mixture in the syntax of `parse`."""
        names = [name for name, precision in NAMED.items() if precision == self]
        return names[0] if names else self.spelled_out()

    def spelled_out(self) -> str:
        """Return the precision as a mixture, `encoder=int8,decoder=w4g128,…`."""
        return ",".join(f"{kind}={name}" for kind, name in self.items())


KINDS = tuple(field.name for field in fields(Precision))
PROVIDERS = {_CPU: "CPUExecutionProvider", _CUDA: "CUDAExecutionProvider"}
FP32 = Precision("fp32", "fp32", "fp32", "fp32")
# A token reads one row of the embedding, so 4 bits would save no time there: embeddings keep 8 bits.
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
    """Return the named precisions worth trying on a provider. 16-bit floats only pay off on GPUs."""
    return [
        precision
        for name, precision in NAMED.items()
        if provider in precision.providers and (name == "fp32" or (name in ("fp16", "bf16")) == (provider == _CUDA))
    ]


def supported(provider: str) -> list[str]:
    """Return the names of the precisions that run on a provider."""
    return [name for name, precision in NAMED.items() if provider in precision.providers]


def parse(text: str) -> Precision:
    """Return a precision from its name, or from `kind=format,…` (omitted kinds are fp32).

    Raises:
        UsageError: The name, a kind or a format is unknown.
    """
    if text in NAMED:
        return NAMED[text]
    formats = dict.fromkeys(KINDS, "fp32")
    for item in text.split(","):
        kind, _, name = item.partition("=")
        if kind not in KINDS or name not in FORMATS:
            raise UsageError(
                f"the precision {text!r} is unknown",
                f"use one of {', '.join(NAMED)}, or a mixture such as "
                f"encoder=int8,decoder=w4,head=w4,embedding=int8 (formats: {', '.join(FORMATS)})",
            )
        formats[kind] = name
    return Precision(**formats)


def markdown_tables() -> str:
    """Return the tables of precisions and formats for the documentation."""
    lines = [
        "| precision | encoder | decoder | head | embedding | runs on | rows are independent on |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, precision in NAMED.items():
        stored = " | ".join(f"`{each}`" for each in astuple(precision))
        independent = ", ".join(precision.independent) or "-"
        lines.append(f"| `{name}` | {stored} | {', '.join(precision.providers)} | {independent} |")
    lines += ["", "| format | bits | group | runs on | stored as |", "|---|---|---|---|---|"]
    for each in FORMATS.values():
        lines.append(
            f"| `{each.name}` | {each.bits} | {each.group or '-'} | {', '.join(each.providers)} | {each.summary} |"
        )
    return "\n".join(lines)

"""The engines that can be timed, by name: their precisions, the format they load, and the packages they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_ft.core.errors import UsageError
from lora_ft.export.precision import NAMED
from lora_ft.export.precision import parse as parse_precision


@dataclass(frozen=True)
class Kind:
    """One kind of engine.

    Attributes:
        precisions: Supported precisions.
        loads: "checkpoint", or the layout that is exported for it.
        peer: File in `requirements/` with the pinned packages of its own environment, or "" for the current one.
        decodings: Supported decodings.
    """

    precisions: tuple[str, ...]
    loads: str
    peer: str = ""
    decodings: tuple[str, ...] = ("greedy", "beams", "sample")


KINDS = {
    "onnx": Kind(tuple(NAMED), "bundle", decodings=("greedy", "beams", "sample", "lookup")),
    "onnx-device": Kind(("fp32", "fp16", "bf16"), "bundle", decodings=("greedy",)),
    "single": Kind(tuple(NAMED), "single", decodings=("greedy", "sample")),
    "torch": Kind(("fp32", "bf16"), "checkpoint"),
    "torch-compile": Kind(("fp32", "bf16"), "checkpoint", decodings=("greedy",)),
    "optimum": Kind(("fp32", "int8", "int8-mixed"), "checkpoint", "optimum"),
    "openvino": Kind(("fp32", "bf16", "int8", "int4"), "checkpoint", "peers"),
    "openvino-requests": Kind(("fp32", "bf16", "int8", "int4"), "checkpoint", "peers", ("greedy",)),
    "ctranslate2": Kind(("fp32", "fp16", "int8"), "checkpoint", "peers"),
    "beam-search": Kind(("fp32", "int8"), "checkpoint", "beam_search", ("greedy", "beams")),
    "mobius": Kind(("fp32",), "checkpoint", "mobius", ("greedy",)),
}
EXACT = "fp32"


@dataclass(frozen=True)
class Engine:
    """A kind of engine in one precision.

    Attributes:
        kind: Key of `KINDS`, or "" for a user's engine.
        precision: Of its weights.
        file: Python file of a user's engine. It defines `load(folder, threads)`, which returns a function. That
            function takes (ids [b, s], mask [b, s], new, least) and returns tokens [b, n]; all arrays are int64.
    """

    kind: str
    precision: str
    file: Path | None = None

    @property
    def name(self) -> str:
        """Return the name as `parse` reads it, without the folder of a file."""
        return f"{self.file.stem if self.file else self.kind}/{self.precision}"

    @property
    def peer(self) -> str:
        """Return `Kind.peer`."""
        return "" if self.file else KINDS[self.kind].peer

    @property
    def loads(self) -> str:
        """Return `Kind.loads`. A user's engine loads a checkpoint."""
        return "checkpoint" if self.file else KINDS[self.kind].loads

    def can(self, decoding: str) -> bool:
        """Return whether the engine supports a decoding."""
        return decoding == "greedy" if self.file else decoding in KINDS[self.kind].decodings


def parse(text: str) -> Engine:
    """Return an engine from `kind/precision` or `file.py/precision`; the default precision is fp32.

    Raises:
        UsageError: The engine, the precision or the file does not exist.
    """
    if text.endswith(".py") or ".py/" in text:
        path, _, precision = text.partition(".py")
        file = Path(f"{path}.py")
        if not file.is_file():
            raise UsageError(f"engine file {file} does not exist")
        return Engine("", precision.removeprefix("/") or EXACT, file)
    name, _, precision = text.partition("/")
    if name not in KINDS:
        raise UsageError(f"engine {name!r} does not exist", f"choose one of {', '.join(KINDS)}, or a Python file")
    precision = precision or EXACT
    kind = KINDS[name]
    if kind.loads != "checkpoint":
        precision = str(parse_precision(precision))
    elif precision not in kind.precisions:
        raise UsageError(
            f"precision {precision!r} is not supported by engine {name}", f"choose one of {', '.join(kind.precisions)}"
        )
    return Engine(name, precision)

"""The engines that can be timed, by name: which precisions each has, what it loads, and what it needs installed."""

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
        precisions: that it has.
        loads: "checkpoint", or the layout that is exported for it.
        peer: the file of pinned requirements in `requirements/` of its own environment, or "" for ours.
        decodings: that it can.
    """

    precisions: tuple[str, ...]
    loads: str
    peer: str = ""
    decodings: tuple[str, ...] = ("greedy", "beams", "sample")


KINDS = {
    "onnx": Kind(tuple(NAMED), "bundle", decodings=("greedy", "beams", "sample", "lookup")),
    "single": Kind(tuple(NAMED), "single", decodings=("greedy", "sample")),
    "torch": Kind(("fp32", "bf16"), "checkpoint"),
    "torch-compile": Kind(("fp32", "bf16"), "checkpoint", decodings=("greedy",)),
    "optimum": Kind(("fp32", "int8"), "checkpoint", "optimum"),
    "openvino": Kind(("fp32", "bf16", "int8", "int4"), "checkpoint", "peers"),
    "ctranslate2": Kind(("fp32", "int8"), "checkpoint", "peers"),
}
EXACT = "fp32"


@dataclass(frozen=True)
class Engine:
    """A kind of engine in one precision.

    Attributes:
        kind: of `KINDS`, or "" for one of the user's own.
        precision: of its weights.
        file: Python file of the user's own engine: it defines `load(folder, threads)`, which returns a function of
            (ids [b, s], mask [b, s], new, least) that gives tokens [b, n], all int64 arrays.
    """

    kind: str
    precision: str
    file: Path | None = None

    @property
    def name(self) -> str:
        """As `parse` reads it, but for a file's folder."""
        return f"{self.file.stem if self.file else self.kind}/{self.precision}"

    @property
    def peer(self) -> str:
        """See `Kind`."""
        return "" if self.file else KINDS[self.kind].peer

    @property
    def loads(self) -> str:
        """See `Kind`. An engine of the user's own loads a checkpoint."""
        return "checkpoint" if self.file else KINDS[self.kind].loads

    def can(self, decoding: str) -> bool:
        """Whether it can choose tokens so."""
        return decoding == "greedy" if self.file else decoding in KINDS[self.kind].decodings


def parse(text: str) -> Engine:
    """An engine from `kind/precision`, or from `file.py/precision`; the precision is fp32 unless given.

    Raises:
        UsageError: there is no such engine, precision or file.
    """
    if text.endswith(".py") or ".py/" in text:
        path, _, precision = text.partition(".py")
        file = Path(f"{path}.py")
        if not file.is_file():
            raise UsageError(f"there is no file {file} with an engine")
        return Engine("", precision.removeprefix("/") or EXACT, file)
    name, _, precision = text.partition("/")
    if name not in KINDS:
        raise UsageError(f"there is no engine {name!r}", f"there are {', '.join(KINDS)}, and Python files")
    precision = precision or EXACT
    kind = KINDS[name]
    if kind.loads != "checkpoint":
        precision = str(parse_precision(precision))
    elif precision not in kind.precisions:
        raise UsageError(f"the engine {name} has no precision {precision!r}", f"it has {', '.join(kind.precisions)}")
    return Engine(name, precision)

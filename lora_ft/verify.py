"""The job `verify`: what a bundle's manifest claims, tried again on this machine. It needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import LoraFtError
from export.parity import Probe, Report
from export.runtime import Generator
from export.runtime.manifest import PROBE


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        manifest: of the bundle.
        then: what the manifest says of the built-in sentences.
        now: what this machine makes of them.
    """

    manifest: dict[str, Any]
    then: Report
    now: Report


def verify(bundle: Path) -> Verified:
    """Check every file's hash and each graph's inputs, and compare the answers to the sentences that came with it.

    Raises:
        UsageError: not a bundle.
        LoraFtError: a file was changed, or fewer answers are PyTorch's than when it was published.
    """
    generator = Generator.load(bundle)
    generator.model.open_all()
    then = Report(**generator.manifest["probe"])
    now = Probe.read(bundle / PROBE).check(generator)
    exact = generator.manifest["precision"] == "fp32"
    if now.identical_rows < then.identical_rows or (exact and not now.passed):
        raise LoraFtError(
            f"{bundle} does not answer here as it did when it was published: {now}; then: {then}",
            "export it on a machine like this one, or please report it with the output of `lora-ft doctor`",
        )
    return Verified(generator.manifest, then, now)

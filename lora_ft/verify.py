"""The verb `verify`: check a bundle against its manifest on this machine, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.core.errors import GateError, sound_content
from lora_ft.export.parity import Probe, Report
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.manifest import ADAPTERS, PROBE


@dataclass(frozen=True)
class Verified:
    """The result of verifying a bundle.

    Attributes:
        manifest: Manifest of the bundle.
        then: Comparison with PyTorch when it was published, on sentences stored in it.
        now: The same comparison on this machine.
        adapters: Comparison of each adapter of a bank on this machine, by name.
    """

    manifest: dict[str, Any]
    then: Report
    now: Report
    adapters: dict[str, Report]


def verify(bundle: Path) -> Verified:
    """Check every file's hash and every graph's inputs, and compare answers with PyTorch's again.

    Raises:
        UsageError: The folder is not a bundle.
        LoraFtError: A file was changed, or fewer answers equal PyTorch's than when the bundle was published.
    """
    generator = Generator.load(bundle, kernel=False)  # the probe is about the graphs
    with sound_content(bundle, "export the bundle again"):
        generator.model.open_all()
        then = Report(**generator.manifest["probe"])
        now = Probe.read(bundle / PROBE).check(generator)
        exact = generator.manifest["precision"] == "fp32"
        _require(f"{bundle}", then, now, exact)
        adapters = {}
        for name, probe in generator.bank.probes() if generator.bank else ():
            adapters[name] = Probe(**probe).check(generator, name)
            _require(
                f"{bundle} with {name}", Report(**generator.manifest[ADAPTERS][name]["probe"]), adapters[name], exact
            )
    return Verified(generator.manifest, then, now, adapters)


def _require(subject: str, then: Report, now: Report, exact: bool) -> None:
    """Raise GateError if fewer answers equal PyTorch's than when the bundle was published."""
    if now.identical_rows < then.identical_rows or (exact and not now.passed):
        raise GateError(
            f"{subject} answers differently on this machine: {now} (when published: {then})",
            "export it on a machine of this type, or report it with the output of `lora-ft doctor`",
        )

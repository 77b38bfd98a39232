"""The adapters of a bank, from its manifest alone: this module must not import torch or onnx."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.core.errors import UsageError, sound_content
from lora_ft.export.parity import Report
from lora_ft.export.runtime import manifest


@dataclass(frozen=True)
class Entry:
    """An adapter of a bank.

    Attributes:
        name: Name by which it is selected.
        bytes: Size of its file.
        report: Comparison with PyTorch.
        gate: Record of the quality gate, or None if no score was measured.
    """

    name: str
    bytes: int
    report: Report
    gate: dict[str, Any] | None


def entries(bank: Path) -> list[Entry]:
    """Return the adapters of a bank, by name.

    Raises:
        UsageError: The folder is not a bank.
        LoraFtError: The bank is damaged.
    """
    content = manifest.read_manifest(bank)
    if not manifest.is_bank(bank):
        raise UsageError(f"{bank} is not a bank", "create a bank with `lora-ft export --adapters RUN…`")
    with sound_content(f"the list of adapters in {bank / manifest.NAME}", "export the bank again"):
        return [
            Entry(name, entry["bytes"], Report(**entry["parity"]), entry.get("gate"))
            for name, entry in sorted(content[manifest.ADAPTERS].items())
        ]

"""What an export's stages take."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies.exporting import IMPORTS, is_verification, measure, text
from lora_ft.core.errors import LoraFtError


def test_stages_of_an_export_add_up(tiny_base: Path) -> None:
    ticks = iter(range(100))
    found = measure(str(tiny_base), "int8", lambda: float(next(ticks)))
    assert next(iter(found)) == IMPORTS and {"calibrating", "building int8"} <= found.keys()
    assert set(filter(is_verification, found)) == {"comparing with PyTorch", "comparing fp32", "comparing int8"}
    assert sum(found.values()) == next(ticks) - 1  # every moment is in some stage


def test_an_export_that_fails_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LoraFtError, match="in int8 failed"):
        measure(str(tmp_path / "nothing"), "int8")
    assert "nothing" in capfd.readouterr().err


def test_the_table_parts_export_and_verification() -> None:
    fp32 = {"imports": 1.0, "comparing with PyTorch": 2.0}
    found = {"fp32": fp32, "int8": {**fp32, "calibrating": 3.0, "scoring int8": 4.0}}
    assert "| calibrating |  | 3.0 |" in text(found)
    assert "| **export** | 1.0 | 4.0 |" in text(found) and "| **verification** | 2.0 | 6.0 |" in text(found)

"""The study of the time of an export's stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies.exporting import IMPORTS, is_verification, measure, text
from lora_ft.core.errors import LoraFtError


def test_stages_add_up_to_the_time_of_the_export(tiny_base: Path) -> None:
    ticks = iter(range(100))
    stages = measure(str(tiny_base), "int8", lambda: float(next(ticks)))
    assert next(iter(stages)) == IMPORTS and {"calibrating", "building int8"} <= stages.keys()
    assert set(filter(is_verification, stages)) == {"comparing with PyTorch", "comparing fp32", "comparing int8"}
    assert sum(stages.values()) == next(ticks) - 1  # every tick belongs to a stage


def test_failed_export_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LoraFtError, match="in int8 failed"):
        measure(str(tmp_path / "nothing"), "int8")
    assert "nothing" in capfd.readouterr().err


def test_table_separates_export_and_verification() -> None:
    fp32 = {"imports": 1.0, "comparing with PyTorch": 2.0}
    stages = {"fp32": fp32, "int8": {**fp32, "calibrating": 3.0, "scoring int8": 4.0}}
    assert "| calibrating |  | 3.0 |" in text(stages)
    assert "| **export** | 1.0 | 4.0 |" in text(stages) and "| **verification** | 2.0 | 6.0 |" in text(stages)

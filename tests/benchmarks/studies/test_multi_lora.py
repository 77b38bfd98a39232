"""The measurement of packs, on a base of no size."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies import multi_lora
from lora_ft.models.bases import Base


def test_packs_are_measured_against_training_alone(
    tiny_base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Base(str(tiny_base), tiny_base)
    found = multi_lora.measure(base, "fp32", 12, 8, [1, 3], rows=2, rank=2, steps=2)
    assert [one.adapters for one in found] == [0, 1, 3]
    assert all(one.samples_per_second and one.times for one in found)
    monkeypatch.setattr(multi_lora, "device_memory", lambda device: 1)
    found += multi_lora.measure(base, "bf16", 12, 8, [1], rows=2, rank=2, steps=1)
    assert found[-1].samples_per_second is None
    multi_lora.show(found)
    printed = capsys.readouterr().out
    assert "alone" in printed and "does not fit" in printed and "12+8" in printed

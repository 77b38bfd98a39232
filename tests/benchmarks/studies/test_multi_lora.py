"""The study of adapter groups, on the tiny base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.studies import multi_lora
from lora_ft.models.bases import Base


def test_groups_are_compared_with_training_alone(
    tiny_base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Base(str(tiny_base), tiny_base)
    settings = multi_lora.Settings("fp32", 12, 8, rows=2, rank=2, steps=2)
    timings = multi_lora.measure(base, [1, 3], settings)
    assert [timing.adapters for timing in timings] == [0, 1, 3]
    assert all(timing.samples_per_second and timing.times for timing in timings)
    packed = multi_lora.measure(base, [2], replace(settings, precision="bf16", steps=1))
    assert [timing.adapters for timing in packed] == [0, 2] and all(timing.samples_per_second for timing in packed)
    monkeypatch.setattr(multi_lora, "device_memory", lambda device: 1)
    timings += multi_lora.measure(base, [1], replace(settings, precision="bf16", steps=1))
    assert timings[-1].samples_per_second is None
    multi_lora.show(timings)
    printed = capsys.readouterr().out
    assert "alone" in printed and "does not fit" in printed and "12+8" in printed

"""The study of the decoder kernel on a tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.studies.kernel import Side, _main, measure
from lora_ft.core.errors import UsageError
from lora_ft.export.precision import parse
from tests.export.oracle import make_bundle
from tests.export.runtime.test_kernel import SIZES
from tests.tiny import save_tiny_t5


def test_both_sides_are_measured_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle"
    make_bundle(save_tiny_t5(tmp_path / "checkpoint", **SIZES), bundle, precisions=[parse("int8")])
    with Side(bundle, "kernel") as side:
        if not side.steps_by.startswith("kernel"):
            pytest.skip(side.steps_by)
    _main([bundle], rounds=2, json_file=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [case["batch"] for case in figures["cases"]] == [1, 8]
    for case in figures["cases"]:
        median, low, high = case["ratio"]
        assert 0 < low <= median <= high and case["same_rows"][1] == case["batch"]
    shown = capsys.readouterr().out.strip()
    assert readme.kernel(figures).startswith(shown) and shown.count("`int8`") == 2
    assert "times as fast" in readme.lines.kernel_line(figures)


def test_a_bundle_that_the_kernel_does_not_run_is_refused(tmp_path: Path) -> None:
    make_bundle(save_tiny_t5(tmp_path / "checkpoint"), tmp_path / "bundle")
    with pytest.raises(UsageError, match="the precision fp32 has no kernel"):
        measure(tmp_path / "bundle", 1)

"""The study of the running batch on a tiny bank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.studies.running_batch import ROWS, main, measure, tables
from lora_ft.core.errors import UsageError
from tests.export.oracle import make_bundle
from tests.soak import TinyBank
from tests.tiny import save_tiny_t5


def test_every_case_is_measured_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(TinyBank(tmp_path).folder, rounds=3, json_file=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert all(seconds > 0 for seconds in figures["seconds"].values())
    shown = capsys.readouterr().out
    assert f"| ms of a step, by rows | {' | '.join(map(str, ROWS))} |" in shown
    assert shown.count("mixed adapters") == 2
    assert "pay beside a row from" in shown
    page = readme.running_batch(figures)
    assert page.startswith(shown.strip()) and f"Medians of 3 rounds; a bank of {figures['adapters']} adapters" in page

    for pair, cell in ((2.0, "2.0"), (1.5, "4.0"), (1.0, "never")):
        seconds = dict.fromkeys(figures["seconds"], 1.0) | {"call 4": 2.0, "step 128 none 2": pair}
        assert f"| 4 | 2000.00 | 2.0 | {cell} |" in tables({"seconds": seconds})


def test_bundle_without_adapters_is_refused(tmp_path: Path) -> None:
    make_bundle(save_tiny_t5(tmp_path / "checkpoint"), tmp_path / "bundle")
    with pytest.raises(UsageError, match="fewer than two adapters"):
        measure(tmp_path / "bundle", 3)

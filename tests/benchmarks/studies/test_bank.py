"""The measurement of banks: every case is there, and the tables say what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import benchmarks.studies.bank as module
from lora_ft.models.bases import Base

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory by process is Linux's")


def test_every_case_is_measured(tiny_base: Path, tmp_path: Path) -> None:
    found = module.run(
        Base("tiny", tiny_base),
        [1, 3],
        precision="int8",
        rank=2,
        targets=["q", "v"],
        rows=[1, 2],
        source=8,
        steps=3,
        rounds=2,
        requests=8,
    )
    assert [one["adapters"] for one in found["loading"]] == [1, 3]
    assert all(one["seconds"] > 0 and one["resident"] > one["megabytes_each"] > 0 for one in found["loading"])
    assert [(one["rows"], one["adapters"]) for one in found["steps_of"]] == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert all(one["ratio"] == 1 for one in found["steps_of"] if not one["adapters"])
    (stream,) = found["streams"]
    assert stream["adapters"] == 3 and stream["bank"] > 0 and stream["sessions"] > 0
    said = module.tables(found)
    assert len([line for line in said.splitlines() if line.startswith("|")]) == 4 + 7 + 3 and "int8, r 2 on q,v" in said


def test_figures_are_written(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {
        "loading": [{"adapters": 1, "megabytes_each": 2.0, "seconds": 1.0, "resident": 100.0}],
        "steps_of": [],
        "streams": [],
        "precision": "w8",
        "rank": 4,
        "targets": "q",
    }
    monkeypatch.setattr(module, "run", lambda *rest, **options: figures)
    import typer

    app = typer.Typer()
    app.command()(module.main)
    done = CliRunner().invoke(app, ["--base", str(tiny_base), "--json", str(tmp_path / "found.json")])
    assert done.exit_code == 0 and "w8, r 4 on q; an adapter has 2.0 MB" in done.stdout
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["precision"] == "w8" and "environment" in written

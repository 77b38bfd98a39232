"""The study of banks: every case is measured, and the tables show the figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import benchmarks.studies.bank as module
from lora_ft.models.bases import Base

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="only Linux reports memory by process"
)


def test_every_case_is_measured(tiny_base: Path, tmp_path: Path) -> None:
    figures = module.run(
        Base("tiny", tiny_base),
        [1, 3],
        module.Settings("int8", 2, ("q", "v"), (1, 2), source=8, steps=3, rounds=2, requests=8),
    )
    assert [row["adapters"] for row in figures["loading"]] == [1, 3]
    assert all(row["seconds"] > 0 and row["resident"] > row["megabytes_each"] > 0 for row in figures["loading"])
    assert [(row["rows"], row["adapters"]) for row in figures["steps_of"]] == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert all(row["ratio"] == 1 for row in figures["steps_of"] if not row["adapters"])
    (stream,) = figures["streams"]
    assert stream["adapters"] == 3 and stream["bank"] > 0 and stream["sessions"] > 0
    text = module.tables(figures)
    assert (
        len([line for line in text.splitlines() if line.startswith("|")]) == 4 + 7 + 3 and "int8, rank 2 on q,v" in text
    )


def test_main_writes_figures_and_prints_tables(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {
        "loading": [{"adapters": 1, "megabytes_each": 2.0, "seconds": 1.0, "resident": 100.0}],
        "steps_of": [],
        "streams": [],
        "precision": "w8",
        "rank": 4,
        "targets": "q",
    }
    monkeypatch.setattr(module, "run", lambda *arguments, **options: figures)
    import typer

    app = typer.Typer()
    app.command()(module.main)
    result = CliRunner().invoke(app, ["--base", str(tiny_base), "--json", str(tmp_path / "figures.json")])
    assert result.exit_code == 0 and "w8, rank 4 on q; an adapter takes 2.0 MB" in result.stdout
    stored = json.loads((tmp_path / "figures.json").read_text())
    assert stored["precision"] == "w8" and "environment" in stored

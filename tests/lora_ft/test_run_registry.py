"""Adapters in a folder of runs: list, inspect and remove."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lora_ft.core.errors import UsageError
from lora_ft.run_registry import adapter_entry, list_runs, remove_runs
from lora_ft.runs.run import Run


@pytest.fixture
def folder(tiny_run: Run, tmp_path: Path) -> Path:
    for name in ("b", "a"):
        shutil.copytree(tiny_run.folder, tmp_path / name)
    return tmp_path


def test_list_runs_sorts_adapters_by_name_with_their_facts(folder: Path, tiny_run: Run) -> None:
    entries = list_runs(folder)
    assert [entry.name for entry in entries] == ["a", "b"]
    entry = entries[0]
    assert (entry.rank, entry.metric, entry.score) == (8, "loss", tiny_run.metrics["best_metric"])
    assert entry.bytes == sum(path.stat().st_size for path in (folder / "a" / "adapter").iterdir())
    assert not entry.best


def test_best_run_of_a_grid_is_marked(folder: Path) -> None:
    (folder / "grid.json").write_text(json.dumps({"version": 1, "best": "tiny", "runs": []}))
    assert adapter_entry(folder / "a").best


def test_runs_without_an_adapter_are_omitted(folder: Path) -> None:
    task = yaml.safe_load((folder / "a" / "task.yaml").read_text())
    (folder / "a" / "task.yaml").write_text(yaml.safe_dump(task | {"method": "full"}))
    assert [entry.name for entry in list_runs(folder)] == ["b"]
    with pytest.raises(UsageError, match="has no adapter"):
        adapter_entry(folder / "a")


def test_folder_without_runs_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="contains no runs"):
            list_runs(place)


def test_remove_deletes_no_run_if_one_folder_is_not_a_run(folder: Path) -> None:
    (folder / "notes").mkdir()
    with pytest.raises(UsageError, match="not a run"):
        remove_runs([folder / "a", folder / "notes"])
    assert (folder / "a").is_dir()
    assert remove_runs([folder / "a"]) > 0 and not (folder / "a").exists()

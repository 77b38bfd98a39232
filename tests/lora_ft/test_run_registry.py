"""A folder of runs as a shelf of adapters."""

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


def test_adapters_come_by_name_with_what_is_known_of_them(folder: Path, tiny_run: Run) -> None:
    found = list_runs(folder)
    assert [one.name for one in found] == ["a", "b"]
    one = found[0]
    assert (one.rank, one.metric, one.score) == (8, "loss", tiny_run.metrics["best_metric"])
    assert one.bytes == sum(path.stat().st_size for path in (folder / "a" / "adapter").iterdir())
    assert not one.best


def test_the_best_of_a_grid_is_marked(folder: Path) -> None:
    (folder / "grid.json").write_text(json.dumps({"version": 1, "best": "tiny", "runs": []}))
    assert adapter_entry(folder / "a").best


def test_runs_without_an_adapter_are_left_out(folder: Path) -> None:
    task = yaml.safe_load((folder / "a" / "task.yaml").read_text())
    (folder / "a" / "task.yaml").write_text(yaml.safe_dump(task | {"method": "full"}))
    assert [one.name for one in list_runs(folder)] == ["b"]
    with pytest.raises(UsageError, match="leaves no adapter"):
        adapter_entry(folder / "a")


def test_a_folder_without_runs_is_no_shelf(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="holds no runs"):
            list_runs(place)


def test_nothing_is_removed_where_one_is_no_run(folder: Path) -> None:
    (folder / "notes").mkdir()
    with pytest.raises(UsageError, match="not a run"):
        remove_runs([folder / "a", folder / "notes"])
    assert (folder / "a").is_dir()
    assert remove_runs([folder / "a"]) > 0 and not (folder / "a").exists()

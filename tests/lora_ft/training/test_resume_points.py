"""Checkpoints: one can be resumed at every moment, and incomplete ones are never used."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_ft.training import resume_points
from lora_ft.training.resume_points import latest, seal


def written(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "weights").write_text(str(step), encoding="utf-8")
    return path


def sealed(folder: Path, *steps: int) -> None:
    for step in steps:
        written(folder, step)
        seal(folder, step, keep=99, best=None)


def steps_in(folder: Path) -> set[int]:
    return {int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*")}


def test_latest_checkpoint_has_the_highest_step(tmp_path: Path) -> None:
    sealed(tmp_path, 2, 10, 9)
    assert latest(tmp_path) == tmp_path / "checkpoint-10"


def test_latest_is_none_without_checkpoints(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "none") is None


def test_incomplete_checkpoints_are_ignored_and_deleted(tmp_path: Path) -> None:
    sealed(tmp_path, 2)
    written(tmp_path, 1)
    written(tmp_path, 4)
    assert latest(tmp_path) == tmp_path / "checkpoint-2"
    assert steps_in(tmp_path) == {2}


def test_latest_deletes_all_checkpoints_if_all_are_incomplete(tmp_path: Path) -> None:
    written(tmp_path, 4)
    assert latest(tmp_path) is None and steps_in(tmp_path) == set()


def test_other_folders_are_not_deleted(tmp_path: Path) -> None:
    for name in ("checkpoint-best", "adapter", "checkpoint-3.bak"):
        (tmp_path / name).mkdir()
    assert latest(tmp_path) is None
    assert len(list(tmp_path.iterdir())) == 3


def test_sealing_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    sealed(tmp_path, 1, 2, 3, 4)
    written(tmp_path, 5)
    seal(tmp_path, 5, keep=2, best=str(tmp_path / "checkpoint-2"))
    assert steps_in(tmp_path) == {2, 4, 5}
    assert latest(tmp_path) == tmp_path / "checkpoint-5"


def test_sealing_without_a_best_keeps_the_newest_only(tmp_path: Path) -> None:
    sealed(tmp_path, 1, 2, 3)
    written(tmp_path, 4)
    seal(tmp_path, 4, keep=1, best=None)
    assert steps_in(tmp_path) == {4}


def test_best_checkpoint_may_have_another_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed(tmp_path, 1, 2)
    written(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    seal(tmp_path, 3, keep=1, best="./checkpoint-1")
    assert steps_in(tmp_path) == {1, 3}


def test_older_checkpoints_are_deleted_after_the_new_one_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed(tmp_path, 1, 2)
    newest = written(tmp_path, 3)
    contents = {path.name for path in newest.iterdir()}
    deleted: list[Path] = []

    def delete(path: Path) -> None:
        assert {path.name for path in newest.iterdir()} > contents  # the mark is written
        deleted.append(path)
        shutil.rmtree(path)

    monkeypatch.setattr(resume_points, "shutil", type("Deleting", (), {"rmtree": staticmethod(delete)}))
    seal(tmp_path, 3, keep=1, best=None)
    assert [path.name for path in deleted] == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize("moment", ["sync_tree", "write_text"])
def test_process_killed_while_sealing_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    sealed(tmp_path, 1, 2)
    written(tmp_path, 3)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(resume_points, moment, killed)
    with pytest.raises(KeyboardInterrupt):
        seal(tmp_path, 3, keep=1, best=None)
    assert latest(tmp_path) == tmp_path / "checkpoint-2"


def test_mark_is_written_after_the_flush_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = written(tmp_path, 1)
    before = {path.name for path in newest.iterdir()}
    at_flush: list[set[str]] = []
    monkeypatch.setattr(resume_points, "sync_tree", lambda path: at_flush.append({p.name for p in path.iterdir()}))
    seal(tmp_path, 1, keep=1, best=None)
    assert at_flush == [before]

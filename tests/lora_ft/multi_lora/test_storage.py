"""What groups leave for whoever goes on: small files, whole copies of folders, and who may write."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.multi_lora.leased_snapshots import LeasedSnapshots
from lora_ft.multi_lora.snapshots import Snapshot, Snapshots
from lora_ft.multi_lora.storage import Storage


@pytest.fixture(params=["folder", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage of each kind that needs no network."""
    kinds = {
        "folder": str(tmp_path / "s"),
        "file": f"file://{tmp_path}/s",
        "memory": f"memory://{secrets.token_hex(4)}",
    }
    return kinds[request.param]


def tree(folder: Path, text: str) -> Path:
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "deep" / "file").write_text(text)
    return folder


def test_small_files_come_back(place: str) -> None:
    storage = Storage(place)
    assert storage.get("a") is None
    storage.put("a", "one")
    storage.put("a", "two")
    assert Storage(place).get("a") == "two"
    storage.drop("a")
    assert storage.get("a") is None
    storage.clear()
    storage.clear()


def test_the_newest_copy_comes_back_and_older_ones_go(place: str, tmp_path: Path) -> None:
    storage = Storage(place)
    assert not storage.fetch(1, tmp_path / "out")
    for text in ("first", "second"):
        storage.send(tree(tmp_path / "one", text), 1)
    storage.send(tree(tmp_path / "eleven", "other"), 11)
    assert storage.fetch(1, tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "file").read_text() == "second"
    assert storage._names(1) == ["pack-1-000002.tar", "pack-1-000002.tar.complete"]


def test_a_torn_copy_is_passed_over_and_replaced(place: str, tmp_path: Path) -> None:
    storage = Storage(place)
    storage.send(tree(tmp_path / "one", "whole"), 1)
    storage.put("pack-1-000002.tar", "half an arch")
    assert storage.fetch(1, tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "file").read_text() == "whole"
    storage.send(tree(tmp_path / "one", "newer"), 1)
    assert storage.fetch(1, tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "file").read_text() == "newer"


@pytest.mark.parametrize("url", ["nowhere://bucket", "dvc://bucket"])
def test_a_url_that_nothing_here_reads_is_told(url: str) -> None:
    with pytest.raises(UsageError, match=url):
        Storage(url)


def snapshot(tick: int) -> Snapshot:
    return Snapshot(tick, {}, {}, ["done"], {})


def test_who_was_taken_over_writes_no_more(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "s"))
    first = LeasedSnapshots(tmp_path / "1", storage, 1)
    first.write(snapshot(1))
    second = LeasedSnapshots(tmp_path / "1", storage, 1)
    with pytest.raises(LoraFtError, match="group 1 was taken over by"):
        first.write(snapshot(2))
    second.write(snapshot(3))
    found = Snapshots(tmp_path / "1").latest()
    assert found is not None and found.tick == 3


def test_each_snapshot_is_copied_where_nothing_is_shared(tmp_path: Path) -> None:
    storage, scratch = Storage(f"file://{tmp_path}/s"), tree(tmp_path / "scratch", "log")
    LeasedSnapshots(scratch / "packs" / "1", storage, 1, scratch).write(snapshot(5))
    elsewhere = tmp_path / "elsewhere"
    assert storage.fetch(1, elsewhere)
    assert (elsewhere / "deep" / "file").read_text() == "log"
    found = Snapshots(elsewhere / "packs" / "1").latest()
    assert found == snapshot(5)

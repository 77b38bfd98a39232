"""Storage of snapshots: small files, copies of folders, and leases of attempts."""

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
    """Path or URL of a storage, for each kind that needs no network."""
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


def test_storage_returns_small_files(place: str) -> None:
    storage = Storage(place)
    assert storage.get("a") is None
    storage.put("a", "one")
    storage.put("a", "two")
    assert Storage(place).get("a") == "two"
    storage.drop("a")
    assert storage.get("a") is None
    storage.clear()
    storage.clear()


def test_fetch_returns_the_newest_copy_and_send_deletes_older_copies(place: str, tmp_path: Path) -> None:
    storage = Storage(place)
    assert not storage.fetch(1, tmp_path / "out")
    for text in ("first", "second"):
        storage.send(tree(tmp_path / "one", text), 1)
    storage.send(tree(tmp_path / "eleven", "other"), 11)
    assert storage.fetch(1, tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "file").read_text() == "second"
    assert storage._names(1) == ["pack-1-000002.tar", "pack-1-000002.tar.complete"]


def test_incomplete_copy_is_ignored_and_replaced(place: str, tmp_path: Path) -> None:
    storage = Storage(place)
    storage.send(tree(tmp_path / "one", "whole"), 1)
    storage.put("pack-1-000002.tar", "half an arch")
    assert storage.fetch(1, tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "file").read_text() == "whole"
    storage.send(tree(tmp_path / "one", "newer"), 1)
    assert storage.fetch(1, tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "file").read_text() == "newer"


@pytest.mark.parametrize("url", ["nowhere://bucket", "dvc://bucket"])
def test_unsupported_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=url):
        Storage(url)


def snapshot(tick: int) -> Snapshot:
    return Snapshot(tick, {}, {}, ["done"], {})


def test_superseded_attempt_cannot_write(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "s"))
    first = LeasedSnapshots(tmp_path / "1", storage, 1)
    first.write(snapshot(1))
    second = LeasedSnapshots(tmp_path / "1", storage, 1)
    with pytest.raises(LoraFtError, match="group 1 was taken over by"):
        first.write(snapshot(2))
    second.write(snapshot(3))
    latest = Snapshots(tmp_path / "1").latest()
    assert latest is not None and latest.tick == 3


def test_snapshots_are_copied_to_the_storage_without_a_shared_folder(tmp_path: Path) -> None:
    storage, scratch = Storage(f"file://{tmp_path}/s"), tree(tmp_path / "scratch", "log")
    LeasedSnapshots(scratch / "packs" / "1", storage, 1, scratch).write(snapshot(5))
    elsewhere = tmp_path / "elsewhere"
    assert storage.fetch(1, elsewhere)
    assert (elsewhere / "deep" / "file").read_text() == "log"
    latest = Snapshots(elsewhere / "packs" / "1").latest()
    assert latest == snapshot(5)

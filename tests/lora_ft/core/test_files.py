"""Atomic writes: a reader sees a complete output or none, and failures leave no files."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_ft.core import files
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import folder_size, sha256, staged_folder, write_json, write_text
from tests.export.oracle import entries

ROOT = Path(__file__).parents[3]


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def make_folder(path: Path, **texts: str) -> Path:
    path.mkdir(parents=True)
    for name, text in texts.items():
        (path / name).write_text(text)
    return path


def make_checkpoint(path: Path, text: str = "old") -> Path:
    """Make a folder that lora-ft may replace."""
    path.mkdir()
    (path / "merge.json").write_text('{"versions": {"lora-ft": "0.1.0"}}')
    (path / "README.md").write_text(text)
    return path


def fill_disk(monkeypatch: pytest.MonkeyPatch, at: int = 1) -> None:
    """Let fsync fail with a full disk, from its `at`-th call on."""
    calls = iter(range(1, 1000))
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if next(calls) >= at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_staged_folder_is_renamed_to_the_output(tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "out"
    with staged_folder(out) as staging:
        (staging / "a.txt").write_text("a")
        (staging / "sub").mkdir()
        (staging / "sub" / "b.txt").write_text("b")
        assert not out.exists()
    assert contents(out) == {"a.txt": "a", "sub/b.txt": "b"}
    assert entries(out.parent) == {"out"}


def test_staging_is_on_the_file_system_of_the_output(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as staging:
        assert staging.parent == tmp_path


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_no_files(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), staged_folder(tmp_path / "out") as staging:
        (staging / "half.txt").write_text("half")
        raise failure
    assert entries(tmp_path) == set()


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_keeps_the_existing_folder(tmp_path: Path, failure: type[BaseException]) -> None:
    out = make_checkpoint(tmp_path / "out")
    before = contents(out)
    with pytest.raises(failure), staged_folder(out, overwrite=True) as staging:
        (staging / "half.txt").write_text("half")
        raise failure
    assert entries(tmp_path) == {"out"}
    assert contents(out) == before


def test_existing_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    out = make_folder(tmp_path / "out", old="old")
    entered = False
    with pytest.raises(UsageError, match=r"already exists.*--overwrite") as caught, staged_folder(out):
        entered = True
    assert not entered
    assert caught.value.exit_code == 2
    assert entries(tmp_path) == {"out"}


def test_empty_folder_is_replaced(tmp_path: Path) -> None:
    out = make_folder(tmp_path / "out")
    with staged_folder(out) as staging:
        (staging / "a.txt").write_text("a")
    assert entries(tmp_path) == {"out"}
    assert contents(out) == {"a.txt": "a"}


def test_overwriting_swaps_the_whole_folder_at_the_end(tmp_path: Path) -> None:
    out = make_checkpoint(tmp_path / "out")
    before = contents(out)
    with staged_folder(out, overwrite=True) as staging:
        (staging / "README.md").write_text("new")
        assert contents(out) == before
    assert contents(out) == {"README.md": "new"}
    assert entries(tmp_path) == {"out"}


def test_overwrite_of_a_missing_folder_creates_it(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "a.txt").write_text("a")
    assert contents(tmp_path / "out") == {"a.txt": "a"}


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_full_disk_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    fill_disk(monkeypatch, at)  # four things are flushed before the swap: two files and two folders
    with pytest.raises(OSError, match="No space left"), staged_folder(tmp_path / "out") as staging:
        make_folder(staging / "sub", b="b")
        (staging / "a.txt").write_text("a")
    assert entries(tmp_path) == set()


@pytest.mark.parametrize("at", [1, 2])
def test_a_full_disk_keeps_the_folder_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    out = make_checkpoint(tmp_path / "out")
    before = contents(out)
    fill_disk(monkeypatch, at)
    with pytest.raises(OSError, match="No space left"), staged_folder(out, overwrite=True) as staging:
        (staging / "a.txt").write_text("a")
    assert entries(tmp_path) == {"out"}
    assert contents(out) == before


def test_everything_is_flushed_before_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    before_publishing: list[Path] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def note_rename(old: Path, new: Path) -> None:
        before_publishing.extend(flushed)
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    with staged_folder(tmp_path / "out") as staging:
        make_folder(staging / "sub", b="b")
        (staging / "a.txt").write_text("a")
    assert set(before_publishing) == {staging, staging / "a.txt", staging / "sub", staging / "sub" / "b"}
    assert flushed[-1] == tmp_path


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path, dead_pid: int) -> None:
    make_folder(tmp_path / f".out.{dead_pid}-0a.partial", half="half")
    with staged_folder(tmp_path / "out") as staging:
        assert entries(tmp_path) == {staging.name, ".out.lock"}
    assert entries(tmp_path) == {"out"}


def test_a_process_killed_in_the_middle_of_a_swap_loses_nothing(tmp_path: Path, dead_pid: int) -> None:
    make_checkpoint(tmp_path / f".out.{dead_pid}-0a.old.partial", "before")
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "out", overwrite=True):
        raise RuntimeError
    assert entries(tmp_path) == {"out"}
    assert contents(tmp_path / "out")["README.md"] == "before"


def test_a_swap_that_fails_halfway_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "out", "before")
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(target).name == "out" and ".old" not in Path(source).name:
            raise OSError("the disk is gone")
        rename(source, target)

    monkeypatch.setattr("lora_ft.core.files.os.rename", failing)
    with pytest.raises(OSError, match="gone"), staged_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "after").write_text("after")
    assert entries(tmp_path) == {"out"}
    assert contents(tmp_path / "out")["README.md"] == "before"


def test_leftovers_with_the_current_process_id_are_removed(tmp_path: Path) -> None:
    """In containers the process often has the same number each time."""
    make_folder(tmp_path / f".out.{os.getpid()}-0a.partial", half="half")
    with staged_folder(tmp_path / "out") as staging:
        pass
    assert entries(tmp_path) == {"out"} and not staging.exists()


def test_folder_with_a_similar_name_is_not_a_leftover(tmp_path: Path, dead_pid: int) -> None:
    similar = make_folder(tmp_path / f".out.{dead_pid}.{os.getppid()}-0a.partial", half="half")
    with staged_folder(tmp_path / "out"):
        pass
    assert entries(tmp_path) == {"out", similar.name}


def test_a_link_to_a_folder_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    real = make_checkpoint(tmp_path / "real")
    (tmp_path / "out").symlink_to("real")
    with staged_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "README.md").write_text("after")
    assert (tmp_path / "out").readlink() == Path("real")
    assert contents(real) == {"README.md": "after"} and entries(tmp_path) == {"out", "real"}


def test_a_file_that_a_dead_process_left_is_removed(tmp_path: Path, dead_pid: int) -> None:
    (tmp_path / f".out.{dead_pid}-0a.partial").write_text("half")
    write_text(tmp_path / "out", "new")
    assert contents(tmp_path) == {"out": "new"}


def test_a_file_that_another_thread_is_writing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "a.txt", os.replace
    nested = iter([True])

    def replace(staging: Path, target: Path) -> None:
        if next(nested, False):
            write_text(path, "inner")
        real(staging, target)

    monkeypatch.setattr(os, "replace", replace)
    write_text(path, "outer")
    assert contents(tmp_path) == {"a.txt": "outer"}


def test_foreign_folder_at_the_destination_is_kept(tmp_path: Path) -> None:
    """Somebody may have created it while a job was running for hours."""
    with pytest.raises(LoraFtError, match="it contains notes"), staged_folder(tmp_path / "out") as staging:
        (staging / "a.txt").write_text("a")
        make_folder(tmp_path / "out", notes="mine")
    assert contents(tmp_path / "out") == {"notes": "mine"}


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_file_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with staged_folder(tmp_path / "out") as staging:
            os.close(os.open(staging / "private", os.O_CREAT | os.O_WRONLY, 0o600))
            os.close(os.open(staging / "script", os.O_CREAT | os.O_WRONLY, 0o700))
        write_text(tmp_path / "text", "")
    finally:
        os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("out", "out/private", "out/script", "text")}
    assert modes == {
        "out": 0o777 & ~mask,
        "out/private": 0o666 & ~mask,
        "out/script": 0o700 | (0o666 & ~mask),
        "text": 0o666 & ~mask,
    }


def test_leftovers_of_other_outputs_are_kept(tmp_path: Path, dead_pid: int) -> None:
    unrelated = {
        f".other.{dead_pid}-0a.partial",
        f".out2.{dead_pid}-0a.partial",
        ".out.notes.partial",
        f".out.{dead_pid}",
    }
    for name in unrelated:
        make_folder(tmp_path / name)
    with staged_folder(tmp_path / "out"):
        pass
    assert entries(tmp_path) == {"out"} | unrelated


def test_a_killed_job_publishes_nothing_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = (
        "import os, signal, sys, pathlib; from lora_ft.core.files import staged_folder\n"
        "with staged_folder(pathlib.Path(sys.argv[1])) as staging:\n"
        "    (staging / 'half.txt').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(out)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert len(entries(tmp_path)) == 2  # the incomplete folder, and the lock of the dead process
    with staged_folder(out) as staging:
        (staging / "a.txt").write_text("a")
    assert entries(tmp_path) == {"out"}
    assert contents(out) == {"a.txt": "a"}


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "one\ntwo\r\nüñ→\n")
    assert path.read_bytes() == "one\ntwo\r\nüñ→\n".encode()
    write_text(path, "shorter")
    assert path.read_bytes() == b"shorter"
    assert entries(tmp_path) == {"a.txt"}


@pytest.mark.parametrize("existing", [None, "old"])
def test_a_full_disk_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: str | None) -> None:
    path = tmp_path / "a.txt"
    if existing is not None:
        path.write_text(existing)
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert contents(tmp_path) == ({} if existing is None else {"a.txt": existing})


def test_text_that_cannot_be_encoded_keeps_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert contents(tmp_path) == {"a.txt": "old"}


def test_the_old_text_is_there_until_the_new_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    states: list[tuple[str, str]] = []
    real = os.replace

    def replace(staging: Path, target: Path) -> None:
        states.append((path.read_text(), Path(staging).read_text()))
        real(staging, target)

    monkeypatch.setattr(os, "replace", replace)
    write_text(path, "new")
    assert states == [("old", "new")]
    assert path.read_text() == "new"


def test_json_is_read_back_as_it_was(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": {"ü": "→"}}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert '"ü": "→"' in text and text.endswith("}\n")


@pytest.mark.parametrize(
    ("content", "digest"),  # of FIPS 180-2, appendix B
    [
        (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (b"a" * 1_000_000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
    ],
)
def test_the_digest_is_that_of_the_standard(tmp_path: Path, content: bytes, digest: str) -> None:
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == digest


def test_the_size_of_a_folder_is_that_of_all_its_files(tmp_path: Path) -> None:
    make_folder(tmp_path / "out" / "sub", b="12345")
    (tmp_path / "out" / "a").write_text("123")
    assert folder_size(tmp_path / "out") == 8


def test_flushing_reaches_every_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "out" / "sub", b="b")
    flushed: list[Path] = []
    monkeypatch.setattr(files, "sync", flushed.append)
    files.sync_tree(tmp_path / "out")
    assert set(flushed) == {tmp_path / "out", tmp_path / "out" / "sub", tmp_path / "out" / "sub" / "b"}

"""Output paths: only files and folders that lora-ft created are replaced, and never an input."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ft.core.errors import UsageError
from lora_ft.core.files import staged_folder, write_text
from lora_ft.core.output_paths import refuse_existing, refuse_file, refuse_shelf
from tests.lora_ft.core.test_files import contents, make_checkpoint, make_folder


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    current = Path.cwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(current)


SPECIAL: dict[str, Callable[[Path], object]] = {"a FIFO": make_fifo, "a socket": make_socket}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("linked", [False, True])
def test_special_files_are_refused(tmp_path: Path, kind: str, linked: bool) -> None:
    SPECIAL[kind](tmp_path / "out")
    before = (tmp_path / "out").stat()
    out = tmp_path / "out"
    if linked:
        out = tmp_path / "link"
        out.symlink_to("out")
    with pytest.raises(UsageError, match=f"is {kind}"):
        refuse_shelf(out)
    with pytest.raises(UsageError, match=rf"out is {kind}|link is {kind}"):
        refuse_existing(out, overwrite=True)
    with pytest.raises(UsageError, match=f"is {kind}"):
        refuse_file(out, "--html")
    assert (tmp_path / "out").stat() == before


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
def test_devices_are_refused(device: str) -> None:
    with pytest.raises(UsageError, match="is a device"):
        refuse_existing(Path(device), overwrite=True)
    with pytest.raises(UsageError, match="is a device"):
        refuse_file(Path(device), "--predictions")
    assert Path(device).is_char_device()


def test_file_is_refused_as_a_folder_and_a_folder_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        refuse_existing(tmp_path / "file", overwrite=True)
    with pytest.raises(UsageError, match=r"file is a file"):
        refuse_existing(tmp_path / "file" / "out", overwrite=True)
    with pytest.raises(UsageError, match="is a folder, not a file"):
        refuse_file(tmp_path, "--html")


@pytest.mark.parametrize("name", [".", "..", "sub", "sub/deeper/..", "~"])
def test_home_and_current_folder_and_their_parents_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    home = make_checkpoint(tmp_path / "home")  # refused even though lora-ft may have created it
    deep = make_checkpoint(tmp_path / "sub")
    (deep / "deeper").mkdir()
    monkeypatch.chdir(deep / "deeper")
    monkeypatch.setenv("HOME", str(home))
    out = home if name == "~" else Path(name) if name.startswith(".") else tmp_path / name
    with pytest.raises(UsageError, match=r"the (home|current) folder"):
        refuse_existing(out, overwrite=True)


def test_root_of_the_file_system_is_refused() -> None:
    with pytest.raises(UsageError, match=r"root|contains the"):
        refuse_existing(Path("/"), overwrite=True)


def test_foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    out = make_folder(tmp_path / "out", thesis="years")
    with pytest.raises(UsageError, match=r"was not created by lora-ft \(it contains thesis\).*move it away"):
        refuse_existing(out, overwrite=True)
    assert contents(out) == {"thesis": "years"}


def test_folder_with_added_files_is_not_overwritten(tmp_path: Path) -> None:
    out = make_checkpoint(tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is a checkpoint that also contains notes\.txt"):
        refuse_existing(out, overwrite=True)


def test_half_written_files_of_a_killed_process_do_not_count(tmp_path: Path) -> None:
    out = make_checkpoint(tmp_path / "out")
    half = out / f".{next(out.iterdir()).name}.27486-c6bf699b.partial"
    half.write_text("half")
    refuse_existing(out, overwrite=True)
    half.rename(out / ".mine.partial")
    with pytest.raises(UsageError, match=r"also contains \.mine\.partial"):
        refuse_existing(out, overwrite=True)


def test_inputs_and_their_parents_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = make_checkpoint(tmp_path / "out")
    inside = out / "tokenizer.json"
    inside.write_text("{}")
    (tmp_path / "link").symlink_to("out")
    for path, overlap in [(out, "is the same as"), (inside, "contains"), (tmp_path / "link", "is the same as")]:
        with pytest.raises(UsageError, match=rf"out {overlap} the input .*so it is not replaced"):
            refuse_existing(out, overwrite=True, inputs=["google/flan-t5-small", path])
    assert refuse_existing(out, overwrite=True, inputs=["google/flan-t5-small", "", tmp_path / "other"]) == out
    with pytest.raises(UsageError, match="lies in"):
        refuse_existing(make_checkpoint(out / "adapter"), overwrite=True, inputs=[out])


def test_dangling_link_and_loop_of_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(UsageError, match=r"is a link to .*nowhere, which does not exist"):
        refuse_existing(tmp_path / "out", overwrite=True)
    with pytest.raises(UsageError, match=r"link to|cannot be followed"):
        refuse_file(tmp_path / "round", "--html")
    assert (tmp_path / "out").is_symlink()


def test_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    for refuse in (lambda out: refuse_existing(out, overwrite=False), lambda out: refuse_file(out, "--out")):
        with pytest.raises(UsageError, match="bytes in its name that are not UTF-8"):
            refuse(tmp_path / os.fsdecode(b"caf\xe9"))


def test_link_to_a_file_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("")
    (tmp_path / "out").symlink_to("real")
    write_text(tmp_path / "out", "new")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_mount_point_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    script = f'mount -t tmpfs none {tmp_path}/out && python -c "{MOUNTED}" {tmp_path}/out'
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        probe = subprocess.run([*prefix, f"mount -t tmpfs none {tmp_path}/out"], check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("this machine has no unshare")
    if probe.returncode:
        pytest.skip("this machine allows no mounts")
    root = Path(__file__).parents[3]
    process = subprocess.run([*prefix, script], cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert "is a mount point" in process.stdout, process.stderr


MOUNTED = """
import pathlib, sys
from lora_ft.core.errors import UsageError
from lora_ft.core.output_paths import refuse_existing
try:
    refuse_existing(pathlib.Path(sys.argv[1]), overwrite=False)
except UsageError as error:
    print(error)
"""


def test_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write everywhere
    with pytest.raises(UsageError, match=f"since {tmp_path} is read-only"):
        refuse_existing(tmp_path / "new" / "out", overwrite=False)
    with pytest.raises(UsageError, match=r"is read-only.*another --html"):
        refuse_file(tmp_path / "out.html", "--html")


PAGE = '<!doctype html>\n<html><head><meta name="generator" content="lora-ft"></head></html>'


@pytest.mark.parametrize(
    ("name", "text", "ours"),
    [
        ("empty", "", True),
        ("page.html", PAGE, True),
        ("page.html", "<!doctype html>\n<html><head><title>mine</title></head></html>", False),
        ("answers.jsonl", '{"row": "0", "prompt": "p", "output": "o", "references": ["r"]}\n', True),
        ("alpaca.jsonl", '{"instruction": "i", "input": "", "output": "o"}\n', False),
        ("rows.jsonl", '{"text": "t"}\n', False),
        ("report.json", '{\n "version": 1,\n "suite": {}\n}', True),
        ("package.json", '{\n "version": "1.0.0"\n}', False),
        ("notes.txt", "mine", False),
        ("binary", "\x00\x01", False),
        ("report.md", "# mine\n", False),
    ],
)
def test_only_own_files_are_replaced(tmp_path: Path, name: str, text: str, ours: bool) -> None:
    path = tmp_path / name
    path.write_text(text)
    if ours:
        assert refuse_file(path, "--html") == path
    else:
        with pytest.raises(UsageError, match=r"was not created by lora-ft.*another --html"):
            refuse_file(path, "--html")
    assert path.read_text() == text


def test_input_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    os.link(path, tmp_path / "other")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is an input"):
            refuse_file(path, "--html", inputs=[tmp_path / "other"], overwrite=overwrite)


def test_output_behind_a_link_is_staged_next_to_its_target(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    make_checkpoint(tmp_path / "disk" / "real")
    (tmp_path / "out").symlink_to("disk/real")
    with staged_folder(tmp_path / "out", overwrite=True) as staging:
        assert staging.parent == tmp_path / "disk"

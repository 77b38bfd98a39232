"""Commands with closed, broken, full and ASCII-only standard streams; secrets in messages."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from rich.table import Table

from lora_ft.core.failures import explain, run_safely, without_secrets
from lora_ft.reports.terminal import Console
from lora_ft.runs.run import Run

COMMAND = (sys.executable, "-m", "lora_ft")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command, with `lora-ft` replaced by the command under test."""
    line = command.replace("lora-ft", " ".join(COMMAND))
    return subprocess.run(["bash", "-c", line], capture_output=True, env=os.environ | environment, timeout=120)


@pytest.mark.parametrize(
    "value",
    ["\x1b[31mred", "[red]red[/red]", "[/none]", ":smile:", "\x9b2J"],
    ids=["esc", "tags", "tag", "emoji", "c1"],
)
def test_console_interprets_no_markup(value: str) -> None:
    console, plain = Console(), io.StringIO()
    console.file = plain
    cells = Table(box=None)
    cells.add_column(value)
    cells.add_row(value)
    console.print(cells)
    console.print(value)
    assert "\x1b" not in plain.getvalue() and "\x9b" not in plain.getvalue()
    assert plain.getvalue().count(value.replace("\x1b", "\\u001b").replace("\x9b", "\\u009b")) == 3


def test_ascii_terminal_shows_every_result(tmp_path: Path) -> None:
    task = tmp_path / "tâsk.yaml"
    task.write_text("name: [", encoding="utf-8")
    process = shell(f"lora-ft validate '{task}'", PYTHONIOENCODING="ascii")
    assert process.returncode == 2
    assert b"t\\xe2sk.yaml" in process.stdout + process.stderr and b"Traceback" not in process.stderr


def test_results_survive_a_closed_stdout_and_stderr() -> None:
    assert shell("lora-ft recipes >&-").returncode == 0
    assert shell("lora-ft recipes 2>&-").returncode == 0
    assert shell("lora-ft validate no-such-task 2>&- >&-").returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_an_error() -> None:
    process = shell("lora-ft recipes > /dev/full")
    assert process.returncode == 1
    assert process.stderr.decode().startswith("error: ") and "no space" in process.stderr.decode()
    assert process.stderr.count(b"\n") == 1


def test_closed_pipe_is_not_an_error() -> None:
    process = shell("lora-ft recipes | true; exit ${PIPESTATUS[0]}")
    assert process.returncode in (0, 1, 141) and not process.stderr  # click answers some with 1


def test_unreadable_stdin_is_reported(tiny_run: Run) -> None:
    closed = shell(f"lora-ft generate {tiny_run.folder} <&-")
    assert closed.returncode == 2 and b"stdin is closed" in closed.stderr
    binary = shell(f"printf 'abc\\nd\\xffe\\n' | lora-ft generate {tiny_run.folder}")
    assert binary.returncode == 2 and b"line 2 of stdin" in binary.stderr
    confirmation = shell(f"lora-ft adapters rm {tiny_run.folder} <&-")
    assert confirmation.returncode == 2 and b"--yes" in confirmation.stderr and tiny_run.folder.is_dir()


@pytest.mark.parametrize("secret", ["p@ss/w%rd é", 'quo"ted\\back', "tab\tinside it", "trailing blanks  "])
def test_a_secret_of_odd_characters_is_never_printed(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("SERVICE_APIKEY", secret)
    forms = {
        secret.strip(),
        repr(secret.strip())[1:-1],
        json.dumps(secret.strip())[1:-1],
        quote(secret.strip(), safe=""),
    }
    for form in forms:
        assert without_secrets(f"GET https://u:{form}@host failed") == "GET https://u:(SERVICE_APIKEY)@host failed"


def test_a_secret_that_begins_with_another_one_is_not_printed_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("HF_TOKEN", "abcdefgh-and-more")
    assert without_secrets("sent abcdefgh-and-more") == "sent (HF_TOKEN)"


def test_the_traceback_of_debug_hides_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_123456789")

    def fail() -> None:
        raise ValueError("sent hf_123456789\n\x1b[31m")

    assert run_safely(fail, debug=True) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "hf_123456789" not in shown and "\x1b" not in shown
    assert len(shown.splitlines()) > 3


def test_a_secret_of_the_environment_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_first\nsecond half")
    for line in ("Illegal header value b'Bearer hf_first\\nsecond half'", "Bearer hf_first second half"):
        assert "hf_first" not in without_secrets(line) and "(HF_TOKEN)" in without_secrets(line)


def test_missing_folder_for_temporary_files_is_reported() -> None:
    error = FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")
    assert explain(error) == ("no folder for temporary files is writable; set TMPDIR to a writable folder", 1)


ASCII_NAMES = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems read arguments as UTF-8 in every locale")
@pytest.mark.parametrize("argument", ["tâsk.yaml", "日本"])
def test_utf8_arguments_read_as_ascii_are_refused(argument: str) -> None:
    process = shell(f"lora-ft generate no-such-model '{argument}'", **ASCII_NAMES)
    assert process.returncode == 2
    assert b"is UTF-8, but Python reads arguments as ascii; unset PYTHONUTF8" in process.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems read arguments as UTF-8 in every locale")
def test_file_names_that_ascii_cannot_hold_are_named(tmp_path: Path, tiny_base: Path) -> None:
    lines = ["name: t", f"base: {tiny_base}", 'prompt: "{text}"', "data: {train: zeilen-ß.jsonl, target: t}"]
    (tmp_path / "task.yaml").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "zeilen-ß.jsonl").write_text('{"text": "a", "t": "b"}\n', encoding="utf-8")
    process = shell(f"lora-ft validate {tmp_path / 'task.yaml'}", **ASCII_NAMES)
    assert process.returncode == 2
    assert b"is not a file name in ascii, which Python uses here; unset PYTHONUTF8" in process.stdout + process.stderr

"""`lora-ft chat`: typed and piped lines, rounds without input, beginnings from files, and wrong usage."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lora_ft.cli import run as lora_ft
from lora_ft.export_onnx import export_onnx
from lora_ft.runs.run import Run

Capture = pytest.CaptureFixture[str]
GREEDY = ["--greedy", "--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, chat_run: Run) -> Path:
    """Return the bundle of a chat."""
    out = tmp_path_factory.mktemp("chat") / "bundle"
    export_onnx(str(chat_run.folder), out)
    return out


def test_rounds_continue_from_a_beginning(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "start.txt").write_text("\ufeffAna: hello\nthere\nBen: hi\n", encoding="utf-8")
    for start in (str(tmp_path / "start.txt"), "Ana: hello\nthere\nBen: hi"):
        assert lora_ft(["chat", str(bundle), "--rounds", "2", "--start", start, *GREEDY]) == 0
        shown = capsys.readouterr()
        assert re.match(r"\w+: .", shown.out) and "named no speaker; attributed to Ben" in shown.err
        assert max(map(len, shown.out.splitlines())) <= 80


def test_piped_lines_are_answered_without_torch(bundle: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = sys.modules['ijson'] = None\n"
        "sys.modules['yaml'] = sys.modules['peft'] = None\n"
        "from lora_ft.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "chat", str(bundle), "--as", "Ana", *GREEDY]
    process = subprocess.run(
        command, input="hello\n\n/who\n/quit\nnever read\n", capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert re.search(r"^\(.*Ana.*\)$", process.stderr, re.MULTILINE)
    assert process.stdout.strip() or "wrote nothing" in process.stderr


def test_end_of_input_ends_the_chat(bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert lora_ft(["chat", str(bundle), "--as", "Ana"]) == 0
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_is_prompted_for_lines(bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["hello", "/who"])
    prompts: list[str] = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", answer)
    assert lora_ft(["chat", str(bundle), "--as", "Ana", "--start", "Ben: hi", *GREEDY]) == 0
    shown = capsys.readouterr()
    assert prompts == ["Ana: "] * 3 and shown.out.startswith("Ben: hi\n") and "/quit" in shown.err


def test_seed_is_shown_only_if_it_can_repeat_the_chat(
    bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["chat", str(bundle), "--as", "Ana", "--start", "Ben: hi", "--do-sample", "--max-new-tokens", "8"]
    assert lora_ft([*command, "--rounds", "1"]) == 0
    assert "sampled with seed" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert lora_ft(command) == 0
    assert "sampled with seed" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda _: "/quit")
    assert lora_ft(command) == 0
    assert "seed" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--rounds", "2"], "--rounds needs a beginning of the chat; add --start"),
        (
            ["--rounds", "2", "--start", "good morning"],
            "is not a chat line; write `Name: text` lines, or correct the path",
        ),
        (["--rounds", "0"], "rounds"),
    ],
)
def test_wrong_usage_is_refused(bundle: Path, capsys: Capture, arguments: list[str], part: str) -> None:
    assert lora_ft(["chat", str(bundle), *arguments]) == 2
    assert part in capsys.readouterr().err


def test_beginning_in_another_encoding_is_refused(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "start.txt").write_bytes(b"Ana: caf\xe9")
    assert lora_ft(["chat", str(bundle), "--start", str(tmp_path / "start.txt")]) == 1
    assert "start.txt is not UTF-8 (byte 8)" in capsys.readouterr().err


def test_model_of_another_task_is_refused(published: Path, capsys: Capture) -> None:
    assert lora_ft(["chat", str(published), "--as", "Ana"]) == 2
    assert "was not trained on chats" in capsys.readouterr().err

"""The README's commands and code run on a tiny model, and its task file is a task."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_ft.cli import run
from tests.lora_ft.serving.server_process import server_process
from tests.pages import ROOT, blocks, commands, smaller

README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_LINES = 150


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


def test_first_commands_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    make_targets = [line.split()[1] for block in blocks(README, "console") for line in block.splitlines()]
    assert make_targets == ["quickstart", "test"]
    assert set(make_targets) <= set(targets)


def test_task_file_is_a_task(tmp_path: Path) -> None:
    from lora_ft.tasks.files import load_task

    (tmp_path / "task.yaml").write_text(blocks(README, "yaml")[0])
    assert load_task(tmp_path / "task.yaml").lora.r == 16


@pytest.mark.slow
def test_commands_run_in_order(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands(README, "sh"):
        if words[0] == "serve":  # until it is stopped
            with server_process(*words[1:]) as server:
                assert server.post("/v1/generate", model="demo", rows=["Ana: Lunch?"]).status_code == 200
        else:
            assert run(smaller(words, tiny_base)) == 0, words


@pytest.mark.slow
def test_python_code_runs(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks(README, "python")[0]
    assert 'base="offline"' in code
    exec(code.replace('base="offline"', f"base={str(tiny_base)!r}"), {})
    assert capsys.readouterr().out.splitlines()[-1].startswith("['")


def test_links_name_files() -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), target

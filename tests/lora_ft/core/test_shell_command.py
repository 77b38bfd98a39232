"""Suggested commands: quoted for the shell, and with the path of a program that is not on PATH."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from lora_ft.core.shell_command import shell_command

pytestmark = pytest.mark.skipif(os.name == "nt", reason="quotes of POSIX shells")


@pytest.mark.parametrize("path", ["runs/a", "my runs/it's", "$HOME/`x`", "Läufe/日本", "a;b"])
def test_arguments_are_read_back_by_a_shell(path: str) -> None:
    assert shlex.split(shell_command("evaluate", Path(path), "--baseline")) == [
        "lora-ft",
        "evaluate",
        path,
        "--baseline",
    ]
    assert shell_command("evaluate", "runs/a") == "lora-ft evaluate runs/a"


def test_program_that_is_not_on_the_path_is_named_as_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "my venv" / "lora-ft"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "quickstart"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shlex.split(shell_command("recipes")) == [str(program), "recipes"]
    monkeypatch.setenv("PATH", str(program.parent))
    assert shell_command("recipes") == "lora-ft recipes"
    monkeypatch.setattr(sys, "argv", ["/usr/lib/python/lora_ft/__main__.py", "quickstart"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shell_command("recipes") == "lora-ft recipes"

"""`--help` of every command at 80 columns, `--version`, completion, and options that are the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from lora_ft import __version__
from lora_ft.cli import run as lora_ft
from lora_ft.cli.verbs import app

Capture = pytest.CaptureFixture[str]
SUMMARY = 55  # characters that fit beside the name of a command or option at 80 columns
SHARED = ("--json", "--quiet", "--overwrite", "--set")


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command and group of commands, with the words that name it."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


COMMANDS = dict(commands(get_command(app)))
LEAVES = {path: command for path, command in COMMANDS.items() if not hasattr(command, "commands")}


def first_sentence(text: str) -> str:
    return text.strip().split("\n\n")[0].split(". ")[0].removesuffix(".")


@pytest.fixture
def at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("at_80_columns")
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_fits_80_columns_and_cuts_nothing(path: tuple[str, ...], capsys: Capture) -> None:
    assert lora_ft([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "…" not in shown
    flat = " ".join(shown.split())
    for name, command in getattr(COMMANDS[path], "commands", {}).items():
        assert f"{name} {' '.join(command.help.split('.')[0].split())}." in flat


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_short_option_prints_the_same_help(path: tuple[str, ...], capsys: Capture) -> None:
    assert lora_ft([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert lora_ft([*path, "-h"]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("group", [path for path, command in COMMANDS.items() if hasattr(command, "commands")])
def test_group_without_a_command_prints_its_help(group: tuple[str, ...], capsys: Capture) -> None:
    assert lora_ft([*group, "--help"]) == 0
    shown = capsys.readouterr().out
    assert lora_ft([*group]) == 0
    assert capsys.readouterr().out == shown and len(shown.splitlines()) > 5


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_summaries_fit_their_column(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    if path:
        assert len(first_sentence(command.help)) <= SUMMARY
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{parameter.name} has no help"
        if parameter.name not in ("install_completion", "show_completion"):
            assert len(first_sentence(parameter.help)) <= SUMMARY, parameter.help


@pytest.mark.usefixtures("at_80_columns")
def test_commands_are_grouped_by_purpose(capsys: Capture) -> None:
    assert lora_ft([]) == 0
    shown = capsys.readouterr().out
    headings = [line.removesuffix(":") for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == ["Options", "Start", "Train", "Evaluate", "Generate", "Deploy"]


@pytest.mark.parametrize("option", SHARED)
def test_shared_options_are_the_same_in_every_command(option: str) -> None:
    texts = {parameter.help for command in LEAVES.values() for parameter in command.params if option in parameter.opts}
    assert len(texts) == 1


def test_commands_with_a_result_print_json() -> None:
    without = {path for path, command in LEAVES.items() if not any("--json" in each.opts for each in command.params)}
    assert without == {("chat",), ("serve",), ("adapters", "rm")}


def test_output_has_one_name() -> None:
    names = {name for command in LEAVES.values() for each in command.params for name in each.opts}
    assert "--out" in names and "--output" not in names


def test_version_is_printed(capsys: Capture) -> None:
    assert lora_ft(["--version"]) == 0
    assert capsys.readouterr().out == f"lora-ft {__version__}\n"


def test_commands_are_completed() -> None:
    environment = {**os.environ, "_LORA_FT_COMPLETE": "complete_bash", "COMP_WORDS": "lora-ft ev", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "lora_ft"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.stdout.split() == ["evaluate"], process.stderr

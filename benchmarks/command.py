"""Run a study as a command, with one option for each parameter and one-line errors as in `lora-ft`."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from lora_ft.core.errors import UsageError
from lora_ft.core.failures import run_safely
from lora_ft.core.output_paths import refuse_file
from lora_ft.core.streams import prepare_streams


def run_command(main: Callable[..., Any]) -> None:
    """Run a function with the arguments of this process and exit; `--debug` also prints the traceback of an error.

    A study writes its figures to the parameter `json_file`. If a file exists there that no study wrote, it is refused
    before anything is measured.
    """
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(_guarded(main))
    prepare_streams()
    sys.exit(run_safely(lambda: app(arguments, standalone_mode=False), debug=debug))


def _guarded(main: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(main)  # typer reads the parameters of `main` through this
    def command(**arguments: Any) -> Any:
        if (file := arguments.get("json_file")) is not None:
            refuse_other(file, "--json", is_results)
        return main(**arguments)

    return command


def refuse_other(out: Path, option: str, is_ours: Callable[[bytes], bool]) -> None:
    """Raise UsageError if `out` is a file that a study may not replace.

    Args:
        out: File to write.
        option: Option with this path, for the message.
        is_ours: Returns True if a study wrote this content. An empty file may always be replaced.
    """
    file = refuse_file(out, option, overwrite=True)
    content = file.read_bytes() if file.exists() else b""
    if content.strip() and not is_ours(content):
        raise UsageError(
            f"{out} already exists and was not written by a study", f"move it away, or pass another {option}"
        )


def is_results(content: bytes) -> bool:
    """Return whether a file holds the figures of a study: JSON with the version of lora-ft that was measured."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False
    tasks = value.get("tasks") if isinstance(value, dict) else None  # `scores` records an environment for each task
    return any(map(_names_environment, [value, *(tasks.values() if isinstance(tasks, dict) else ())]))


def _names_environment(value: Any) -> bool:
    environment = value.get("environment") if isinstance(value, dict) else None
    return isinstance(environment, dict) and "lora-ft" in environment

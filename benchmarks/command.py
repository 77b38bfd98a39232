"""Run a study as a command: one option for each parameter, and errors as one line, as `lora-ft` prints them."""

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

    A study takes the file of its figures as the parameter `json_file`. Before it measures anything, a file there that
    no study wrote is refused.
    """
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(_guarded(main))
    prepare_streams()
    sys.exit(run_safely(lambda: app(arguments, standalone_mode=False), debug=debug))


def _guarded(main: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(main)  # typer reads the parameters through it
    def command(**arguments: Any) -> Any:
        if (file := arguments.get("json_file")) is not None:
            refuse_other(file, "--json", is_results)
        return main(**arguments)

    return command


def refuse_other(out: Path, option: str, is_ours: Callable[[bytes], bool]) -> None:
    """Raise UsageError if a file may not be written at `out`.

    Args:
        out: File to write.
        option: The option that named it, for the message.
        is_ours: Whether the content of a file was written by a study. An empty file may always be replaced.
    """
    place = refuse_file(out, option, own=True)
    content = place.read_bytes() if place.exists() else b""
    if content.strip() and not is_ours(content):
        raise UsageError(
            f"{out} already exists and was not written by a study", f"move it away, or give another {option}"
        )


def is_results(content: bytes) -> bool:
    """Return whether a file holds the figures of a study: JSON that names the lora-ft which was measured."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False
    tasks = value.get("tasks") if isinstance(value, dict) else None  # `scores` measures each on its own
    return any(map(_names_environment, [value, *(tasks.values() if isinstance(tasks, dict) else ())]))


def _names_environment(value: Any) -> bool:
    environment = value.get("environment") if isinstance(value, dict) else None
    return isinstance(environment, dict) and "lora-ft" in environment

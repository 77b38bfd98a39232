"""`python -m benchmarks.NAME`: a function as a command that fails as `lora-ft` does, in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from lora_ft.cli.failures import run_safely
from lora_ft.cli.output import prepare_streams


def run_command(main: Callable[..., Any]) -> None:
    """Run a function with the arguments of this process and exit; `--debug` also prints the traceback of an error."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    prepare_streams()
    sys.exit(run_safely(lambda: app(arguments, standalone_mode=False), debug=debug))

"""The command line: a thin function for each verb that parses arguments, calls the verb and prints its result."""

from __future__ import annotations

import sys
import warnings

from lora_ft.core.failures import run_safely
from lora_ft.core.streams import check_arguments, prepare_streams


def main() -> None:
    """Run the command of `sys.argv` and exit.

    Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted, 141 broken pipe.
    """
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if not debug:
        warnings.simplefilter("ignore")
    prepare_streams()
    sys.exit(run([argument for argument in arguments if argument != "--debug"], debug=debug))


def run(arguments: list[str], *, debug: bool = False) -> int:
    """Run a command and return its exit code. Errors are printed as one line on stderr."""

    def command() -> object:
        check_arguments(arguments)
        from lora_ft.cli.verbs import app

        return app(arguments or ["--help"], standalone_mode=False, prog_name="lora-ft")

    return run_safely(command, debug=debug)

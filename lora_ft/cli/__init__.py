"""The command line: one thin function a verb. It parses, calls a job and prints; it alone draws and exits."""

from __future__ import annotations

import errno
import sys
import traceback
import warnings

from export.errors import LoraFtError


def main() -> None:
    """Entry point of `lora-ft`. Exit codes: 0 done, 1 failed, 2 asked wrongly, 130 interrupted."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if not debug:
        warnings.simplefilter("ignore")
    sys.exit(run([argument for argument in arguments if argument != "--debug"], debug=debug))


def run(arguments: list[str], *, debug: bool = False) -> int:
    """Run one command and return its exit code; errors become one line on stderr."""
    from lora_ft.cli.verbs import app

    try:
        result = app(arguments or ["--help"], standalone_mode=False, prog_name="lora-ft")
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, code = _explain(error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return result if isinstance(result, int) else 0


def _explain(error: Exception) -> tuple[str, int]:
    """What to say of an exception, and the exit code."""
    if isinstance(error, LoraFtError):
        return str(error), error.exit_code
    wrong_usage = getattr(error, "format_message", None)  # click's, or the copy of it that newer typer carries
    if callable(wrong_usage):
        return f"{wrong_usage()}; `lora-ft --help` and `lora-ft VERB --help` list what there is", 2
    full = "no space left on the disk; free some, or give an --out on another disk. Nothing half-written was left"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename}: {full}" if error.filename else full, 1
    if "No space left on device" in str(error) or "PytorchStreamWriter failed" in str(error):
        return full, 1  # safetensors, onnx and torch wrap the system's error in their own
    if isinstance(error, ModuleNotFoundError):
        return f"this needs the package {error.name}, which is not installed; pip install 'lora-ft[all]'", 2
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}", 1
    return f"unexpected {type(error).__name__}: {error}; add --debug for the traceback, and please report it", 1

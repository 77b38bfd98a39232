"""Error reports of commands: one line on stderr with the remedy, and an exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from urllib.parse import quote

from lora_ft.core.disk import disk_error
from lora_ft.core.errors import LoraFtError
from lora_ft.core.interrupts import Terminated
from lora_ft.core.printable import printable

INTERRUPTED, BROKEN_PIPE = 130, 141
_SECRET = (  # suffixes of variable names
    "TOKEN",
    "KEY",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "_PASS",
    "CREDENTIALS",
)
_SHORTEST_SECRET = 8  # characters; shorter values are ordinary words
_FREE = "free some space or raise the limit, or give an --out on another disk; no unfinished output remains"


def run_safely(command: Callable[[], object], *, debug: bool = False) -> int:
    """Run a command and return its exit code; an error becomes one line on stderr.

    Args:
        command: Function that returns the exit code; any value other than an integer means 0.
        debug: Print the traceback of an error, too.
    """
    try:
        result = command()
        _flush()
    except BrokenPipeError:  # `lora-ft … | head`
        _discard_stdout()
        return BROKEN_PIPE
    except Exception as error:
        return _fail(error, debug)
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except Terminated as error:
        _complain(f"stopped by {error}")
        return error.exit_code
    return result if isinstance(result, int) else 0


def explain(error: BaseException) -> tuple[str, int]:
    """Return the line to print for an exception, and the exit code."""
    if isinstance(error, LoraFtError):
        return str(error), error.exit_code
    # A method of errors of click, or of the copy of click in newer versions of typer.
    usage = getattr(error, "format_message", None)
    if callable(usage):
        return f"{usage().rstrip('.')}; see --help for commands and options", 2
    if isinstance(error, OSError):
        return _explain_system(error)
    if reason := disk_error(error):  # safetensors, onnx and torch wrap the system's error in their own
        return f"{reason}; {_FREE}", 1
    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
        names = f"file names cannot be written as {sys.getfilesystemencoding()} ({first_words(error)})"
        return f"{names}; unset PYTHONUTF8, or set LC_ALL=C.UTF-8", 1
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return "out of memory; use a smaller batch, shorter lengths or a smaller base, or raise ulimit -v", 1
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed; pip install 'lora-ft[all]'", 2
    if "can't start new thread" in str(error):
        return "no thread or process can be started; raise ulimit -u, or run fewer jobs at once", 1
    return f"unexpected {type(error).__name__}: {error}; add --debug for the traceback, and report it", 1


def _explain_system(error: OSError) -> tuple[str, int]:
    where = f"{error.filename}: " if error.filename else ""
    if reason := disk_error(error):
        return f"{where}{reason}; {_FREE}", 1
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{where}too many open files; raise ulimit -n", 1
    if error.errno == errno.ENOMEM:
        return f"{where}out of memory; run fewer jobs at once, or raise ulimit -v", 1
    if "usable temporary directory" in str(error):
        return "no folder for temporary files is writable; set TMPDIR to a writable folder", 1
    return f"{where}{error.strerror or first_words(error)}", 1


def first_words(error: BaseException) -> str:
    """Return the message of an exception on one line, or its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def _fail(error: Exception, debug: bool) -> int:
    if debug:
        with contextlib.suppress(OSError, ValueError):
            print(printable(without_secrets(traceback.format_exc())), file=sys.stderr)
    message, code = explain(error)
    _complain(f"error: {without_secrets(' '.join(message.split()))}")
    return code


def without_secrets(line: str) -> str:
    """Replace secrets from environment variables in a line, both plain and escaped for Python, JSON or URLs.

    Some libraries print the failed request, including its token.
    """
    secrets = {value.strip(): name for name, value in os.environ.items() if name.upper().endswith(_SECRET)}
    for value in sorted(secrets, key=len, reverse=True):  # a secret may begin with a shorter one
        if len(value) >= _SHORTEST_SECRET:
            sound = value.encode(errors="replace").decode()
            forms = (value, repr(value)[1:-1], json.dumps(value)[1:-1], " ".join(value.split()), quote(sound, safe=""))
            for form in forms:
                line = line.replace(form, f"({secrets[value]})")
    return line


def _complain(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed as well
        print(printable(line), file=sys.stderr)


def _flush() -> None:
    """Flush stdout, so that the command reports a full disk before the interpreter does."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def _discard_stdout() -> None:
    """Redirect stdout to the null device, so that the interpreter can flush it when it exits."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

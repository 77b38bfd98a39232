"""Commands that messages suggest, which a user can copy into a shell."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

_NAME = "lora-ft"


def shell_command(*words: str | os.PathLike[str]) -> str:
    """Return a command of lora-ft with its arguments quoted for the shell, such as `lora-ft evaluate 'my runs/a'`."""
    texts = [os.fspath(word) for word in words]
    quoted = subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)
    return f"{_program()} {quoted}"


def _program() -> str:
    """Return the name of the program, or its path as it was started if the name alone finds none.

    `make quickstart` starts `.venv/bin/lora-ft` in a shell that has not activated the environment.
    """
    started = Path(sys.argv[0])
    if started.stem == _NAME and started.name != sys.argv[0] and shutil.which(_NAME) is None:
        return shlex.quote(sys.argv[0])
    return _NAME

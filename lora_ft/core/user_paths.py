"""Expansion of paths that users write."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lora_ft.core.errors import UsageError


def expanded(path: str | Path) -> Path:
    """Replace ~ or ~user at the start of a path with the home folder.

    Raises:
        UsageError: The user does not exist, or has no home folder; or Python cannot write the name.
    """
    check_name(path)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0]
        raise UsageError(f"{path}: {user} has no home folder", "write the full path") from error


def check_name(path: str | Path) -> None:
    """Raise UsageError if Python cannot write a file's name, as with PYTHONUTF8=0 in the locale C.

    `Path.exists` is False for such a name, so the error would be that there is no file.
    """
    encoding = sys.getfilesystemencoding()
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        if encoding != "utf-8":  # else half a character, which no file has in its name
            raise UsageError(
                f"{path} is not a file name in {encoding}, which Python uses here",
                "unset PYTHONUTF8, or set LC_ALL=C.UTF-8",
            ) from error

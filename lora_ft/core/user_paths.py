"""Expansion of paths that users write."""

from __future__ import annotations

from pathlib import Path

from lora_ft.core.errors import UsageError


def expanded(path: str | Path) -> Path:
    """Replace ~ or ~user at the start of a path with the home folder.

    Raises:
        UsageError: The user does not exist, or has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0]
        raise UsageError(f"{path}: {user} has no home folder", "write the full path") from error

"""Detection of a full disk in the errors of the system, torch and safetensors."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from lora_ft.core.errors import LoraFtError

_NUMBERS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the quota of this user is used up",
    errno.EFBIG: "a file reached the size limit of this shell (ulimit -f)",
}
# Errors of safetensors and tokenizers, which are written in Rust, end with the number of the system's error.
_RUST = re.compile(r"\(os error (\d+)\)")
# torch reports a short write with its line of inline_container.cc but no reason. Read errors name PytorchStreamReader.
_TORCH = re.compile(r"PytorchStreamWriter failed|inline_container\.cc(?!.*PytorchStreamReader)")


def disk_error(error: BaseException | None) -> str:
    """Return the reason of a failed write, from an exception or its causes; "" unless a disk or a quota is full."""
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        if isinstance(error, OSError) and error.errno in _NUMBERS:
            return _NUMBERS[error.errno]
        text = str(error)
        if (match := _RUST.search(text)) and int(match[1]) in _NUMBERS:
            return _NUMBERS[int(match[1])]
        if "No space left on device" in text or _TORCH.search(text):
            return _NUMBERS[errno.ENOSPC]
        error = error.__cause__ or error.__context__
    return ""


@contextlib.contextmanager
def keeping(folder: Path, remedy: str) -> Iterator[None]:
    """Raise a full disk as a LoraFtError that names the output folder.

    Args:
        folder: Folder that the block writes to.
        remedy: Advice for continuing once there is space.
    """
    try:
        yield
    except LoraFtError:
        raise
    except Exception as error:
        if reason := disk_error(error):
            raise LoraFtError(f"{folder}: {reason}", remedy) from error
        raise

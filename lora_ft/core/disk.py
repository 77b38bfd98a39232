"""A full disk, as the system, torch and safetensors each say it."""

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
# safetensors and tokenizers are written in Rust, whose errors end so.
_RUST = re.compile(r"\(os error (\d+)\)")
# torch reports a short write at its line of inline_container.cc, without the reason. Reading has other words.
_TORCH = re.compile(r"PytorchStreamWriter failed|inline_container\.cc(?!.*PytorchStreamReader)")


def disk_fault(error: BaseException | None) -> str:
    """Return why nothing could be written, from an exception or what caused it; "" if that is not the reason."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
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
    """Turn a full disk into a LoraFtError that names the folder that was written to.

    Args:
        folder: Folder that the block writes to.
        remedy: How to go on once there is space.
    """
    try:
        yield
    except LoraFtError:
        raise
    except Exception as error:
        if fault := disk_fault(error):
            raise LoraFtError(f"{folder}: {fault}", remedy) from error
        raise

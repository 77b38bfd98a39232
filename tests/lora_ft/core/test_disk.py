"""Detection of a full disk in the errors of every library that writes files."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lora_ft.core.disk import disk_error, keeping
from lora_ft.core.errors import LoraFtError

SPACE, QUOTA, LIMIT = "no space left", "the quota", "the size limit"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), SPACE),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), QUOTA),
        (OSError(errno.EFBIG, "File too large"), LIMIT),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), SPACE),
        (Exception("Error while serializing: I/O error: File too large (os error 27)"), LIMIT),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), SPACE),
        (RuntimeError("PytorchStreamWriter failed writing file data/12: file write failed"), SPACE),
        (RuntimeError("inline_container.cc:1: PytorchStreamReader failed reading zip archive"), ""),
        (OSError(errno.ENOENT, "No such file or directory"), ""),
        (ValueError("(os error x)"), ""),
        (RuntimeError("size mismatch"), ""),
        (None, ""),
    ],
)
def test_full_disk_is_recognized(error: Exception | None, reason: str) -> None:
    message = disk_error(error)
    assert (reason in message) if reason else message == ""


def test_full_disk_is_recognized_in_a_cause() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("cannot save") from error
    except RuntimeError as error:
        assert SPACE in disk_error(error)


def test_full_disk_is_raised_with_folder_and_remedy() -> None:
    message = r"^runs/x: no space left on the disk; free some$"
    with pytest.raises(LoraFtError, match=message) as caught, keeping(Path("runs/x"), "free some"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 1
    with pytest.raises(ValueError, match="other"), keeping(Path("runs/x"), "free some"):
        raise ValueError("other")

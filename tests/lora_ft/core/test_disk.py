"""A full disk is recognized in the words of every library that writes."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lora_ft.core.disk import disk_fault, keeping
from lora_ft.core.errors import LoraFtError

SPACE, QUOTA, LIMIT = "no space left", "the quota", "the size limit"


@pytest.mark.parametrize(
    ("error", "said"),
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
def test_what_is_a_full_disk(error: Exception | None, said: str) -> None:
    fault = disk_fault(error)
    assert (said in fault) if said else fault == ""


def test_the_cause_counts_too() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("cannot save") from error
    except RuntimeError as error:
        assert SPACE in disk_fault(error)


def test_a_full_disk_names_the_folder_and_the_remedy_and_other_faults_pass() -> None:
    said = r"^runs/x: no space left on the disk; free some$"
    with pytest.raises(LoraFtError, match=said) as caught, keeping(Path("runs/x"), "free some"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 1
    with pytest.raises(ValueError, match="other"), keeping(Path("runs/x"), "free some"):
        raise ValueError("other")

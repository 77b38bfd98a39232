"""The memory a process may use, and how to keep what one training step frees for the next one."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from lora_ft.core.hardware import own_groups

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)


def allowed_memory(cgroup: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes this process may use: the machine's memory, cut by the limits of its cgroups (v2 and v1)."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = [
        *(folder / "memory.max" for folder in own_groups(cgroup, membership)),
        cgroup / "memory" / "memory.limit_in_bytes",
    ]
    limits = [file.read_text().strip() for file in files if file.is_file()]
    return min([machine, *(int(limit) for limit in limits if limit.isdigit())])


def device_memory(device: str) -> int:
    """Bytes of the memory that models on "cuda" or another device lie in."""
    if device != "cuda":
        return allowed_memory()
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


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

"""Name of the processor, and the number of cores that this process may use."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

from lora_ft.core.distributed import processes

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def allowed_cpus(cgroup: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number of cores that this process may use, at least 1.

    The number is the CPU affinity, limited by the cgroup's CPU quota (v2 and v1). ONNX Runtime and torch count the
    machine's cores instead and oversubscribe containers (microsoft/onnxruntime#29510).
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for quota in (_quota_v2(cgroup, membership), _quota_v1(cgroup)) if quota]
    return max(1, min([affinity, *(math.ceil(quota) for quota in quotas)]))


def torch_threads() -> int:
    """Return the number of threads for PyTorch in this process: OMP_NUM_THREADS, or its share of the allowed cores.

    torchrun sets OMP_NUM_THREADS=1 in each of several processes if its user did not, so 1 is ignored there.
    """
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # OpenMP lists one number per nesting level
    count = int(text) if text.isdecimal() else 0
    if count > 1 or (count == 1 and processes() == 1):
        return count
    return max(1, allowed_cpus() // processes())


def cores(count: int, name: str) -> str:
    """Describe a number of cores of a processor, such as "8 cores of NAME"."""
    return f"{count} {'core' if count == 1 else 'cores'} of {name}"


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """Return the name that the processor reports, or "unknown"."""
    return cpu_says("model name", cpuinfo) or platform.processor() or "unknown"


def cache_bytes(folder: Path = CACHES) -> int:
    """Return the size of the largest cache of the first processor, in bytes, or 0 if unknown."""
    sizes = []
    for path in folder.glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 2**10, "M": 2**20}.get(text[-1:])
        if unit and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * unit)
    return max(sizes, default=0)


def cpu_generation(cpuinfo: Path = CPUINFO) -> str:
    """Return family and model, such as "family 26, model 2", or "unknown". Generations can share one name."""
    family, model = cpu_says("cpu family", cpuinfo), cpu_says("model", cpuinfo)
    return f"family {family}, model {model}" if family and model else "unknown"


def cpu_says(key: str, cpuinfo: Path = CPUINFO) -> str:
    """Return the first processor's value of a key in cpuinfo, or "" if it is missing."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":")[::2] for line in lines)
    return next((value.strip() for name, value in pairs if name.strip() == key), "")


def own_groups(cgroup: Path, membership: Path) -> list[Path]:
    """Return the folders of this process's cgroup (v2) and its ancestors; empty without cgroups."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    group = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    return [cgroup / group, *(cgroup / parent for parent in Path(group).parents)]


def _quota_v2(cgroup: Path, membership: Path) -> float | None:
    """Return the smallest CPU quota of this process's cgroups, in cores, or None."""
    quotas = []
    for folder in own_groups(cgroup, membership):
        fields = _words(folder / "cpu.max")
        if len(fields) == 2 and all(field.isdigit() for field in fields) and int(fields[1]):
            quotas.append(int(fields[0]) / int(fields[1]))
    return min(quotas, default=None)


def _quota_v1(cgroup: Path) -> float | None:
    quota, period = _words(cgroup / "cpu" / "cpu.cfs_quota_us"), _words(cgroup / "cpu" / "cpu.cfs_period_us")
    is_limited = quota and period and quota[0].isdigit() and period[0].isdigit()  # a quota of -1 means no limit
    return int(quota[0]) / int(period[0]) if is_limited and int(quota[0]) and int(period[0]) else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []

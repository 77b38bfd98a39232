"""Energy counters: RAPL of Intel and AMD processors, NVML of NVIDIA GPUs. Reading them often needs permission."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_RAPL = Path("/sys/class/powercap")
SOURCES = {"cpu": "RAPL: processors and memory, including all other processes", "cuda": "NVML: the first GPU alone"}


def meter(provider: str) -> Callable[[], float] | None:
    """Return a function that reads the energy used so far, in joules, or None if no counter is readable.

    Only differences between two readings are meaningful.

    Args:
        provider: "cpu" for all packages (and their memory, if counted), "cuda" for the first GPU.
    """
    return _gpu() if provider == "cuda" else rapl(_RAPL)


def rapl(root: Path) -> Callable[[], float] | None:
    """Return a function that reads the sum of all RAPL packages and memories below a folder, wraparound included."""
    domains = []
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                int((folder / "energy_uj").read_text())
                domains.append((folder / "energy_uj", int((folder / "max_energy_range_uj").read_text())))
        except (OSError, ValueError):
            continue  # readable by root only
    if not domains:
        return None
    last, total = [int(path.read_text()) for path, _ in domains], 0

    def joules() -> float:
        nonlocal total
        for i, (path, limit) in enumerate(domains):
            now = int(path.read_text())
            total += (now - last[i]) % (limit + 1)
            last[i] = now
        return total / 1e6

    return joules


def _gpu() -> Callable[[], float] | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except Exception:  # no package, no driver, or a GPU that does not count
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1000

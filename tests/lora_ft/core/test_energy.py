"""Energy counters: the sum of packages and memory, with wraparound."""

from __future__ import annotations

from pathlib import Path

from lora_ft.core.energy import meter, rapl


def domain(root: Path, folder: str, name: str, joules: float, limit: int = 10**9) -> Path:
    place = root / folder
    place.mkdir(parents=True)
    (place / "name").write_text(f"{name}\n")
    (place / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (place / "max_energy_range_uj").write_text(f"{limit}\n")
    return place / "energy_uj"


def test_packages_and_memory_are_summed_without_cores(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 5)
    core = domain(tmp_path, "intel-rapl:0:0", "core", 4)
    memory = domain(tmp_path, "intel-rapl:0:1", "dram", 1)
    joules = rapl(tmp_path)
    assert joules is not None
    start = joules()
    for path, now in ((package, 7), (core, 5), (memory, 1.5)):
        path.write_text(str(int(now * 1e6)))
    assert joules() - start == 2.5


def test_counter_that_wraps_around_continues(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 9, limit=10_000_000 - 1)
    joules = rapl(tmp_path)
    assert joules is not None
    package.write_text("500000")
    assert joules() == 1.5


def test_meter_is_none_without_counters(tmp_path: Path) -> None:
    assert rapl(tmp_path) is None
    domain(tmp_path, "intel-rapl:0", "package-0", 1).unlink()
    assert rapl(tmp_path) is None
    assert meter("cuda") is None or callable(meter("cuda"))

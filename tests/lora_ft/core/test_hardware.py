"""Allowed cores: the CPU affinity, limited by the quotas of cgroups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_ft.core.hardware import allowed_cpus, cache_bytes, cpu_generation, cpu_name, torch_threads


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def tree(root: Path, group: str, quotas: dict[str, str]) -> tuple[Path, Path]:
    """Create a cgroup v2 tree with a cpu.max in some folders, and the file that names this process's group."""
    (root / "cgroup" / group.strip("/")).mkdir(parents=True, exist_ok=True)
    for folder, quota in quotas.items():
        (root / "cgroup" / folder / "cpu.max").write_text(quota)
    (root / "self").write_text(f"1:name=systemd:/elsewhere\n0::{group}\n")
    return root / "cgroup", root / "self"


def v1(root: Path, quota: str, period: str) -> tuple[Path, Path]:
    folder = root / "cgroup" / "cpu"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu.cfs_period_us").write_text(period)
    (root / "self").write_text("4:cpu,cpuacct:/docker/abc\n")
    return root / "cgroup", root / "self"


def test_affinity_applies_without_a_cgroup(tmp_path: Path) -> None:
    assert allowed_cpus(tmp_path / "none", tmp_path / "none") == 16


def test_the_affinity_is_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5} if pid == 0 else {1})
    assert allowed_cpus(tmp_path / "none", tmp_path / "none") == 2


def test_cores_of_the_machine_apply_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert allowed_cpus(tmp_path / "none", tmp_path / "none") == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert allowed_cpus(tmp_path / "none", tmp_path / "none") == 1


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("400000 100000\n", 4),
        ("1000 100000", 1),
        ("50000 10000", 5),
        ("6400000 100000", 16),
        ("max 100000", 16),
    ],
)
def test_the_quota_of_the_group_is_rounded_up(tmp_path: Path, quota: str, expected: int) -> None:
    assert allowed_cpus(*tree(tmp_path, "/a/b", {"a/b": quota})) == expected


def test_smallest_quota_of_all_ancestors_applies(tmp_path: Path) -> None:
    paths = tree(tmp_path, "/a/b/c", {"a/b/c": "max 100000", "a/b": "800000 100000", "a": "300000 100000"})
    assert allowed_cpus(*paths) == 3


def test_quota_of_the_root_applies(tmp_path: Path) -> None:
    assert allowed_cpus(*tree(tmp_path, "/", {"": "200000 100000"})) == 2
    assert allowed_cpus(*tree(tmp_path, "/a", {"": "200000 100000", "a": "max 100000"})) == 2


def test_quota_of_another_group_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "cgroup" / "a" / "other").mkdir(parents=True)
    assert allowed_cpus(*tree(tmp_path, "/a/b", {"a/other": "100000 100000"})) == 16


def test_smaller_affinity_applies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert allowed_cpus(*tree(tmp_path, "/a", {"a": "800000 100000"})) == 3


@pytest.mark.parametrize(("quota", "period", "expected"), [("250000", "100000", 3), ("-1", "100000", 16)])
def test_quota_of_cgroup_v1_applies(tmp_path: Path, quota: str, period: str, expected: int) -> None:
    assert allowed_cpus(*v1(tmp_path, quota, period)) == expected


def test_incomplete_quota_of_cgroup_v1_is_ignored(tmp_path: Path) -> None:
    cgroup, membership = v1(tmp_path, "100000", "100000")
    (cgroup / "cpu" / "cpu.cfs_period_us").unlink()
    assert allowed_cpus(cgroup, membership) == 16


def test_smaller_quota_of_both_versions_applies(tmp_path: Path) -> None:
    v1(tmp_path, "500000", "100000")
    assert allowed_cpus(*tree(tmp_path, "/a", {"a": "700000 100000"})) == 5


def test_this_machine_allows_no_more_than_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of the sixteen cores
    assert 1 <= allowed_cpus() <= (os.cpu_count() or 1)


def test_a_processor_has_a_name_and_a_generation(tmp_path: Path) -> None:
    """Clouds hide the number in the name: Zen 4 and Zen 5 are both an AMD EPYC, with the same flags."""
    info = tmp_path / "cpuinfo"
    lines = ["processor\t: 0", "cpu family\t: 26", "model\t\t: 2", "model name\t: AMD EPYC", "", "model\t\t: 3"]
    info.write_text("\n".join(lines))
    assert (cpu_name(info), cpu_generation(info)) == ("AMD EPYC", "family 26, model 2")
    info.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")  # an ARM
    assert cpu_name(info) and cpu_generation(info) == "unknown"
    assert cpu_generation(tmp_path / "none") == "unknown"


def test_cache_is_the_largest_of_the_first_processor(tmp_path: Path) -> None:
    assert cache_bytes(tmp_path) == 0
    for number, size in enumerate(("32K", "1024K", "32M", "odd")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    assert cache_bytes(tmp_path) == 32 * 2**20


@pytest.mark.parametrize(
    ("variable", "processes", "expected"),
    [
        (None, "1", 16),
        ("3", "1", 3),
        ("1", "1", 1),
        ("4,2", "1", 4),
        ("many", "1", 16),
        ("0", "1", 16),
        (None, "4", 4),
        ("1", "4", 4),
        ("2", "4", 2),
        (None, "32", 1),
    ],
)
def test_threads_of_torch_are_set_by_the_user_else_by_the_allowed_cores(
    variable: str | None, processes: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_ft.core.hardware.allowed_cpus", lambda: 16)
    monkeypatch.setenv("WORLD_SIZE", processes)
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert torch_threads() == expected

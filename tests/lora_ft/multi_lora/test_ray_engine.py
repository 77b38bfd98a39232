"""Adapter groups on a Ray cluster of two nodes train the same adapters as one process, even if workers are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.multi_lora.dashboard import SilentDashboard
from lora_ft.multi_lora.ray_engine import RayEngine, _places
from lora_ft.multi_lora.ray_node import ResourceRequest
from lora_ft.runs.group_record import GROUPS_FOLDER
from lora_ft.runs.run import Run
from lora_ft.tasks.schema import Task
from lora_ft.train_many import train_many
from tests.conftest import write_task
from tests.lora_ft.test_train import wait_for
from tests.lora_ft.test_train_many import different_tasks, files, interrupt, same, start

MakeTask = Callable[..., Path]
WITHOUT = "needs lora-ft[ray]"
STEPS: dict[str, Any] = {"max_steps": 60, "eval_every": 3, "metric_for_best_model": "loss"}
REQUEST = ["--cpus-per-group", "1", "--group-size", "2"]


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [("lora_ft.cli.train, lora_ft.train_many", "ray"), ("lora_ft.multi_lora.ray_node", "torch")],
)
def test_importing_the_engine_does_not_import_ray(modules: str, unwanted: str) -> None:
    code = f"import sys, {modules}; sys.exit({unwanted!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"package ray; run `pip install 'lora-ft\[ray\]'"):
        RayEngine()


@pytest.mark.parametrize(
    ("resources", "requested", "places"),
    [
        ({"CPU": 16.0, "GPU": 4.0}, ResourceRequest(1, 0.5), 8),
        ({"CPU": 4.0, "GPU": 4.0}, ResourceRequest(1, 0.3), 4),
        ({"CPU": 3.0}, ResourceRequest(2, 0), 1),
        ({"CPU": 1.0}, ResourceRequest(0.25, 0), 4),
        ({"CPU": 16.0}, ResourceRequest(1, 1), 0),
        ({}, ResourceRequest(1, 0), 0),
    ],
)
def test_places_of_a_node(resources: dict[str, float], requested: ResourceRequest, places: int) -> None:
    assert _places(resources, requested) == places


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray cluster of processes on this machine: a head that trains nothing, and two nodes with one CPU each."""
    pytest.importorskip("ray", reason=WITHOUT)
    from ray.cluster_utils import Cluster as Nodes

    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick, **small})
        for _ in range(2):
            nodes.add_node(num_cpus=1, **small)
        nodes.wait_for_nodes()
        yield nodes
        nodes.shutdown()


def three(make_task: MakeTask) -> list[Task]:
    return different_tasks(make_task, 3, **STEPS)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> list[Run]:
    """Runs of the same groups, trained in this process on one thread, as on the nodes."""
    root = tmp_path_factory.mktemp("uninterrupted")

    def make(rows: int = 24, name: str = "tiny", **sections: Any) -> Path:
        return write_task(root, tiny_base, rows, name, **sections)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_ft.multi_lora.engine.torch_threads", lambda: 1)
        return train_many(three(make), root / "runs", group_size=2).runs


def holder(place: Path, group: int) -> int:
    """Return the id of the process that trains an adapter group."""
    return int((place / f"holder-{group}").read_text().split()[1])


def sealed(out: Path, group: int) -> bool:
    return any(out.glob(f"{GROUPS_FOLDER}/{group}/checkpoint-*/complete"))


@pytest.mark.slow
def test_lost_workers_and_nodes_resume_bit_identically(
    cluster: Any, make_task: MakeTask, tmp_path: Path, uninterrupted: list[Run]
) -> None:
    out = tmp_path / "runs"
    process = start(files(three(make_task)), out, "--engine", "ray", "--address", cluster.address, *REQUEST)
    wait_for(lambda: sealed(out, 1), process)
    os.kill(holder(out / GROUPS_FOLDER, 1), signal.SIGKILL)
    wait_for(lambda: sealed(out, 2), process)
    raylet = psutil.Process(holder(out / GROUPS_FOLDER, 2)).ppid()
    lost = next(node for node in cluster.worker_nodes if raylet in _raylets(node))
    cluster.remove_node(lost, allow_graceful=False)
    _, output = process.communicate(timeout=240)
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
    assert process.returncode == 0, output.decode()
    assert b"group 1: resuming from step" in output and b"group 2: resuming from step" in output
    for task, theirs in zip(("t0", "t1", "t2"), uninterrupted, strict=True):
        assert same(Run(out / task), theirs)
    assert {path.name for path in out.iterdir()} == {"t0", "t1", "t2", "report.html"}


def _raylets(node: Any) -> list[int]:
    return [raylet.process.pid for raylet in node.all_processes["raylet"]]


@pytest.mark.slow
def test_ctrl_c_keeps_snapshots_in_the_storage_and_resume_fetches_them(
    cluster: Any, make_task: MakeTask, tmp_path: Path, uninterrupted: list[Run]
) -> None:
    out, storage, tasks = tmp_path / "runs", tmp_path / "storage", files(three(make_task))
    more = ["--engine", "ray", "--address", cluster.address, *REQUEST]
    process = start(tasks, out, *more, "--storage", f"file://{storage}")
    wait_for(lambda: list(storage.glob("*/pack-1-*.complete")), process)
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 130 and b"--resume to continue" in output and b"Traceback" not in output, (
        output.decode()
    )
    with pytest.raises(UsageError, match="resume with --engine ray"):
        train_many(three(make_task), out, resume=True)
    process = start(tasks, out, *more, "--resume")
    _, output = process.communicate(timeout=240)
    assert process.returncode == 0, output.decode()
    assert b"resuming from step" in output
    for task, theirs in zip(("t0", "t1", "t2"), uninterrupted, strict=True):
        assert same(Run(out / task), theirs)
    assert {path.name for path in out.iterdir()} == {"t0", "t1", "t2", "report.html"} and not list(storage.iterdir())


@pytest.mark.slow
def test_failed_group_does_not_change_others_and_resumes_later(
    cluster: Any, make_task: MakeTask, tmp_path: Path, uninterrupted: list[Run]
) -> None:
    out, tasks = tmp_path / "runs", three(make_task)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lora_ft.multi_lora.group.AdapterGroup.step", interrupt)
        train_many(tasks, out, group_size=2)
    blocked = out / GROUPS_FOLDER / "1"
    blocked.write_text("a file where a folder should be")
    grouped = train_many(tasks, out, resume=True, engine=RayEngine(cluster.address, cpus=1))
    assert len(grouped.failed) == 2 and all("--resume to continue" in why for why in grouped.failed.values())
    assert len(grouped.runs) == 1
    blocked.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_ft.multi_lora.engine.torch_threads", lambda: 1)
        grouped = train_many(tasks, out, resume=True)
    assert all(same(mine, theirs) for mine, theirs in zip(grouped.runs, uninterrupted, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"cpus": 64},
            "no node of the cluster has 64 CPUs for an adapter group \\(.* has 1 CPUs, .*\\); request fewer",
        ),
        ({"gpus": 0.5}, "no node of the cluster has 1 CPU and 0.5 GPU"),
        ({"storage": "memory://packs"}, "cannot read files that this machine writes to memory://packs/lora-ft-"),
    ],
)
def test_cluster_that_cannot_train_is_refused(
    cluster: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    engine = RayEngine(cluster.address, **options)
    try:
        with pytest.raises(UsageError, match=message):
            engine.inspect(tmp_path / "runs", "fp32", None, SilentDashboard())
    finally:
        engine.close()


def test_unreachable_address_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason=WITHOUT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(LoraFtError, match=f"no cluster answers at 127.0.0.1:{port}"):
        RayEngine(f"127.0.0.1:{port}").inspect(tmp_path, "fp32", None, SilentDashboard())
    with pytest.raises(UsageError, match=r"the cluster\'s address is not HOST:PORT \(got ray://there:1\)"):
        RayEngine("ray://there:1").inspect(tmp_path, "fp32", None, SilentDashboard())
    with pytest.raises(UsageError, match=r"an adapter group trains on one GPU at most \(got 2\)"):
        RayEngine(gpus=2)

"""Adapter groups on a Ray cluster of two nodes: the adapters are those of one process, whoever is killed meanwhile."""

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
from tests.lora_ft.test_train_many import files, interrupt, same, start, unlike

MakeTask = Callable[..., Path]
WITHOUT = "needs lora-ft[ray]"
STEPS: dict[str, Any] = {"max_steps": 60, "eval_every": 3, "metric_for_best_model": "loss"}
PORTION = ["--cpus-per-group", "1", "--group-size", "2"]


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [("lora_ft.cli.train, lora_ft.train_many", "ray"), ("lora_ft.multi_lora.ray_node", "torch")],
)
def test_what_is_imported_for_nothing(modules: str, unwanted: str) -> None:
    code = f"import sys, {modules}; sys.exit({unwanted!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_extra_is_named_where_ray_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"package ray; pip install 'lora-ft\[ray\]'"):
        RayEngine()


@pytest.mark.parametrize(
    ("resources", "portion", "places"),
    [
        ({"CPU": 16.0, "GPU": 4.0}, ResourceRequest(1, 0.5), 8),
        ({"CPU": 4.0, "GPU": 4.0}, ResourceRequest(1, 0.3), 4),
        ({"CPU": 3.0}, ResourceRequest(2, 0), 1),
        ({"CPU": 1.0}, ResourceRequest(0.25, 0), 4),
        ({"CPU": 16.0}, ResourceRequest(1, 1), 0),
        ({}, ResourceRequest(1, 0), 0),
    ],
)
def test_how_many_groups_a_node_has_room_for(
    resources: dict[str, float], portion: ResourceRequest, places: int
) -> None:
    assert _places(resources, portion) == places


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that trains nothing, and two nodes of a CPU each, as processes on this machine."""
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
    return unlike(make_task, 3, **STEPS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> list[Run]:
    """The same groups in this process, on one thread as on the nodes."""
    root = tmp_path_factory.mktemp("undisturbed")

    def make(rows: int = 24, name: str = "tiny", **sections: Any) -> Path:
        return write_task(root, tiny_base, rows, name, **sections)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_ft.multi_lora.engine.allowed_cpus", lambda: 1)
        return train_many(three(make), root / "runs", most=2).runs


def holder(place: Path, group: int) -> int:
    """Process that trains an adapter group."""
    return int((place / f"holder-{group}").read_text().split()[1])


def sealed(out: Path, group: int) -> bool:
    return any(out.glob(f"{GROUPS_FOLDER}/{group}/checkpoint-*/complete"))


@pytest.mark.slow
def test_lost_workers_and_lost_nodes_go_on_to_the_same_bits(
    cluster: Any, make_task: MakeTask, tmp_path: Path, undisturbed: list[Run]
) -> None:
    out = tmp_path / "runs"
    process = start(files(three(make_task)), out, "--engine", "ray", "--address", cluster.address, *PORTION)
    wait_for(lambda: sealed(out, 1), process)
    os.kill(holder(out / GROUPS_FOLDER, 1), signal.SIGKILL)
    wait_for(lambda: sealed(out, 2), process)
    raylet = psutil.Process(holder(out / GROUPS_FOLDER, 2)).ppid()
    lost = next(node for node in cluster.worker_nodes if raylet in _raylets(node))
    cluster.remove_node(lost, allow_graceful=False)
    _, said = process.communicate(timeout=240)
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
    assert process.returncode == 0, said.decode()
    assert b"group 1: going on from step" in said and b"group 2: going on from step" in said
    for task, theirs in zip(("t0", "t1", "t2"), undisturbed, strict=True):
        assert same(Run(out / task), theirs)
    assert {path.name for path in out.iterdir()} == {"t0", "t1", "t2", "report.html"}


def _raylets(node: Any) -> list[int]:
    return [one.process.pid for one in node.all_processes["raylet"]]


@pytest.mark.slow
def test_ctrl_c_leaves_all_in_a_storage_that_nodes_reach_and_resume_brings_it_back(
    cluster: Any, make_task: MakeTask, tmp_path: Path, undisturbed: list[Run]
) -> None:
    out, far, tasks = tmp_path / "runs", tmp_path / "far", files(three(make_task))
    more = ["--engine", "ray", "--address", cluster.address, *PORTION]
    process = start(tasks, out, *more, "--storage", f"file://{far}")
    wait_for(lambda: list(far.glob("*/pack-1-*.complete")), process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and b"--resume goes on" in said and b"Traceback" not in said, said.decode()
    with pytest.raises(UsageError, match="resume with --engine ray"):
        train_many(three(make_task), out, resume=True)
    process = start(tasks, out, *more, "--resume")
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said.decode()
    assert b"going on from step" in said
    for task, theirs in zip(("t0", "t1", "t2"), undisturbed, strict=True):
        assert same(Run(out / task), theirs)
    assert {path.name for path in out.iterdir()} == {"t0", "t1", "t2", "report.html"} and not list(far.iterdir())


@pytest.mark.slow
def test_a_group_that_breaks_down_harms_no_other_and_goes_on_later(
    cluster: Any, make_task: MakeTask, tmp_path: Path, undisturbed: list[Run]
) -> None:
    out, tasks = tmp_path / "runs", three(make_task)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lora_ft.multi_lora.group.AdapterGroup.step", interrupt)
        train_many(tasks, out, most=2)
    blocked = out / GROUPS_FOLDER / "1"
    blocked.write_text("a file where a folder should be")
    packed = train_many(tasks, out, resume=True, engine=RayEngine(cluster.address, cpus=1))
    assert len(packed.failed) == 2 and all("--resume goes on" in why for why in packed.failed.values())
    assert len(packed.runs) == 1
    blocked.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_ft.multi_lora.engine.allowed_cpus", lambda: 1)
        packed = train_many(tasks, out, resume=True)
    assert all(same(mine, theirs) for mine, theirs in zip(packed.runs, undisturbed, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"cpus": 64},
            "no node of the cluster has 64 CPUs for an adapter group; ask for less, or add a node: .* has 1 CPUs",
        ),
        ({"gpus": 0.5}, "no node of the cluster has 1 CPU and 0.5 GPU"),
        ({"storage": "memory://packs"}, "does not see what this machine writes to memory://packs/lora-ft-"),
    ],
)
def test_what_could_never_train_is_refused(cluster: Any, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    engine = RayEngine(cluster.address, **options)
    try:
        with pytest.raises(UsageError, match=said):
            engine.inspect(tmp_path / "runs", "fp32", None, SilentDashboard())
    finally:
        engine.close()


def test_an_address_where_nothing_answers_is_told(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason=WITHOUT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(LoraFtError, match=f"no cluster answers at 127.0.0.1:{port}"):
        RayEngine(f"127.0.0.1:{port}").inspect(tmp_path, "fp32", None, SilentDashboard())
    with pytest.raises(UsageError, match="ray://there:1 is not HOST:PORT"):
        RayEngine("ray://there:1").inspect(tmp_path, "fp32", None, SilentDashboard())
    with pytest.raises(UsageError, match="2 GPUs were requested for an adapter group"):
        RayEngine(gpus=2)

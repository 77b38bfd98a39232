"""Train adapter groups on a Ray cluster. Ray restarts the task of a lost worker, which resumes from its snapshot."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lora_ft.core.errors import LoraFtError, UsageError, first_line
from lora_ft.core.files import replace_folder
from lora_ft.core.hardware import allowed_cpus
from lora_ft.core.interrupts import Interrupted, Interrupts
from lora_ft.multi_lora.dashboard import AdapterStatus, Dashboard
from lora_ft.multi_lora.engine import EngineResult, TrainingSite
from lora_ft.multi_lora.group_job import GroupJob
from lora_ft.multi_lora.progress_server import WAITING, GroupDashboard, ProgressActor
from lora_ft.multi_lora.ray_node import RayNode, ResourceRequest, inspect_node
from lora_ft.multi_lora.ray_worker import NodeResult, train_on_node
from lora_ft.multi_lora.storage import Storage
from lora_ft.runs.group_record import GROUPS_FOLDER
from lora_ft.runs.run import TASK, is_run, working_folder
from lora_ft.tasks.files import save_task

_LOOK = 0.5  # seconds between polls of the reports
_PATIENCE = 30.0  # seconds to wait for busy nodes to describe themselves


class RayEngine:
    """Engine that trains groups on the nodes of a Ray cluster, several at a time.

    Args:
        address: HOST:PORT of the cluster's head. Default: $RAY_ADDRESS, else the cluster of this machine, else a new
            one on this machine alone.
        cpus: CPUs of an adapter group. Default: 1 with a GPU, otherwise all CPUs of the smallest node.
        gpus: Fraction of one GPU for an adapter group. Default: 1 if the cluster has GPUs.
        retries: Maximum number of restarts of an adapter group after its worker was lost; -1 for no limit.
        storage: URL for snapshots and runs, if the nodes do not share the folder of the runs.

    Raises:
        UsageError: Ray is not installed, or more than one GPU is requested.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: float | None = None,
        gpus: float | None = None,
        retries: int = 3,
        storage: str | None = None,
    ) -> None:
        self._address, self._cpus, self._gpus = address, cpus, gpus
        self._retries, self._storage = retries, storage
        if gpus is not None and gpus > 1:
            raise UsageError(
                f"{gpus:g} GPUs were requested for an adapter group, which trains on one", "pass 1 or less, e.g. 0.5"
            )
        self._ray, self._ours = _import_ray(), False

    def close(self) -> None:
        """See `Engine.close`."""
        if self._ours:
            self._ray.shutdown()

    def inspect(self, out: Path, asked: str, storage: str | None, dashboard: Dashboard) -> TrainingSite:
        """See `Engine.inspect`.

        Raises:
            UsageError: No node has the resources for an adapter group, or a node does not meet the requirements.
            LoraFtError: The cluster does not answer.
        """
        dashboard.stage("connecting")
        self._ours = not self._ray.is_initialized()
        if self._ours:
            _connect(self._ray, self._address)
        nodes = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        self._portion = portion = self._choose([node["Resources"] for node in nodes.values()])
        places = {key: _places(node["Resources"], portion) for key, node in nodes.items()}
        able = {key: node for key, node in nodes.items() if places[key]}
        if not able:
            has = "; ".join(f"{node['NodeManagerHostname']} has {_size(node['Resources'])}" for node in nodes.values())
            raise UsageError(
                f"no node of the cluster has {portion} for an adapter group", f"ask for less, or add a node: {has}"
            )
        if self._storage and storage is None:
            storage = f"{self._storage.rstrip('/')}/lora-ft-{secrets.token_hex(4)}"
        place = storage or str(out.absolute() / GROUPS_FOLDER)
        dashboard.stage("asking nodes", len(able))
        found = self._ask(able, Storage(place), asked)
        first = next((node for node in found.values() if not node.precision.is_bf16), next(iter(found.values())))
        room = min(
            node.memory * (portion.gpus or min(portion.cpus / able[key]["Resources"]["CPU"], 1.0))
            for key, node in found.items()
        )
        total = sum(places.values())
        dashboard.note(f"{len(able)} node{'s' * (len(able) > 1)} with room for {total} groups of {portion} at a time")
        return TrainingSite(first.device, first.precision, int(room), total, storage)

    def _choose(self, resources: Sequence[Mapping[str, float]]) -> ResourceRequest:
        """Return the resources of one adapter group."""
        gpus = self._gpus
        if gpus is None:
            gpus = 1.0 if any(has.get("GPU") for has in resources) else 0.0
        cpus = self._cpus
        if cpus is None:
            cpus = 1.0 if gpus else min((has["CPU"] for has in resources if has.get("CPU")), default=1.0)
        return ResourceRequest(cpus, gpus)

    def _ask(self, nodes: Mapping[str, Any], storage: Storage, asked: str) -> dict[str, RayNode]:
        """Return descriptions of the nodes. Busy nodes that do not answer in time are missing."""
        ray, name, token = self._ray, f"token-{secrets.token_hex(8)}", secrets.token_hex(8)
        storage.put(name, token)
        task = ray.remote(inspect_node)
        asking = {}
        for key in nodes:
            there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(key, soft=False)
            options = {"num_cpus": 0, "num_gpus": self._portion.gpus, "scheduling_strategy": there}
            asking[task.options(**options).remote(storage.place, name, asked, self._portion)] = key
        try:
            answered, _ = ray.wait(list(asking), num_returns=len(asking), timeout=_PATIENCE)
            found: dict[str, RayNode] = {}
            for answer in answered or ray.wait(list(asking))[0]:
                key = asking[answer]
                try:
                    found[key] = ray.get(answer)
                except ray.exceptions.RayError as error:
                    raise LoraFtError(
                        f"{nodes[key]['NodeManagerHostname']} cannot run lora-ft ({_cause(error)})",
                        "install the same lora-ft[train,ray] on every node",
                    ) from error
        finally:
            storage.drop(name)
        for node in found.values():
            self._require(node, storage.place, token)
        return found

    def _require(self, node: RayNode, place: str, token: str) -> None:
        """Raise UsageError for a node on which groups cannot train."""
        if node.version != version("lora-ft"):
            raise UsageError(
                f"{node.host} has lora-ft {node.version}, this machine {version('lora-ft')}",
                "install the same on every node",
            )
        if self._portion.gpus and node.device == "cpu":
            raise UsageError(f"torch finds no GPU on {node.host}", "install torch for it there, or --gpus-per-group 0")
        if node.token != token:
            raise UsageError(
                f"{node.host} does not see what this machine writes to {place}",
                "give an --out on storage that all nodes share, or --storage URL, e.g. s3://bucket/folder",
            )

    def run(self, jobs: Sequence[GroupJob], site: TrainingSite, dashboard: Dashboard) -> EngineResult:
        """See `Engine.run`."""
        ray = self._ray
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        progress_actor = ray.remote(ProgressActor).options(num_cpus=0, scheduling_strategy=here).remote()
        # one process per group, so that no group inherits another's torch state or memory
        task = ray.remote(max_calls=1)(train_on_node)
        options = {
            "num_cpus": self._portion.cpus,
            "num_gpus": self._portion.gpus,
            "max_retries": self._retries,
            "scheduling_strategy": "SPREAD",
        }
        storage = Storage(site.storage or str(jobs[0].out / GROUPS_FOLDER))
        if site.storage:
            for job in jobs:
                _leave_tasks(job)
        waiting = {job.number: _waiting(job) for job in jobs}
        group_dashboard = GroupDashboard(
            waiting, {job.number: max(row.steps for row in waiting[job.number]) for job in jobs}, dashboard
        )
        pending = {
            task.options(name=f"group {job.number}", **options).remote(
                job, storage.place, site.storage is None, self._portion, progress_actor
            ): job
            for job in jobs
        }
        ended = EngineResult({}, {})
        interrupts = Interrupts()
        interrupts.take()
        try:
            self._follow(pending, progress_actor, group_dashboard, ended, storage if site.storage else None, interrupts)
        finally:
            interrupts.release()
        if site.storage and not ended.broken:
            storage.clear()
        return ended

    def _follow(
        self,
        pending: dict[Any, GroupJob],
        progress_actor: Any,
        group_dashboard: GroupDashboard,
        ended: EngineResult,
        storage: Storage | None,
        interrupts: Interrupts,
    ) -> None:
        """Follow groups until all have ended."""
        ray, begun, told, stopped = self._ray, set[int](), False, 0
        while pending:
            done, _ = ray.wait(list(pending), timeout=_LOOK)
            reports = ray.get(progress_actor.hear.remote())
            group_dashboard.show(reports)
            begun |= {report.group for report in reports}
            for reference in done:
                job = pending.pop(reference)
                result = self._result(reference)
                stopped += result.stopped
                ended.failed.update(result.failed)
                if result.fault:
                    ended.broken.update(dict.fromkeys(job.names, result.fault))
                if not result.stopped:
                    group_dashboard.end(job.number, result.fault)
                if storage and not result.stopped and not result.fault:
                    _collect(job, storage)
            if interrupts.caught and not told:
                told = True
                ray.get(progress_actor.stop.remote())
            if told and not any(job.number in begun for job in pending.values()):
                break
        group_dashboard.show([])
        if stopped or pending:
            raise Interrupted(
                f"stopped with {stopped + len(pending)} groups unfinished", "the same command with --resume goes on"
            ).by(interrupts.caught)

    def _result(self, reference: Any) -> NodeResult:
        """Return the result of a finished Ray task. A worker that was lost too often counts as a fault."""
        try:
            found: NodeResult = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            return NodeResult(fault=_cause(error))
        except self._ray.exceptions.RayError as error:
            lost = f"its worker was lost more than {self._retries} times"
            return NodeResult(fault=f"{lost} ({type(error).__name__}: {first_line(error)})")
        return found


def _cause(error: Exception) -> str:
    """Return the first line of the error that was raised on the node."""
    return first_line(getattr(error, "cause", None) or error)


def _leave_tasks(job: GroupJob) -> None:
    """Write the tasks into their working folders, where `RunFolder.resume` reads them."""
    for material in job.materials:
        working = working_folder(job.out / material.task.name)
        working.mkdir(exist_ok=True)
        save_task(material.task, working / TASK)


def _collect(job: GroupJob, storage: Storage) -> None:
    """Fetch the finished runs of an adapter group from the storage."""
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    storage.fetch(job.number, job.folder)
    for name in job.names:
        if is_run(job.folder / name):
            replace_folder(job.folder / name, job.out / name)
            shutil.rmtree(working_folder(job.out / name), ignore_errors=True)


def _waiting(job: GroupJob) -> list[AdapterStatus]:
    """Return the status of a group's adapters before it begins."""
    return [
        AdapterStatus(
            one.task.name,
            0,
            job.plans[one.task.name].steps,
            None,
            one.task.train.metric_for_best_model,
            None,
            None,
            None,
            WAITING,
        )
        for one in job.materials
    ]


def _import_ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ModuleNotFoundError as error:
        raise UsageError(f"--engine ray needs the package {error.name}", "pip install 'lora-ft[ray]'") from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    named = address or os.environ.get("RAY_ADDRESS")
    if named not in (None, "auto"):
        _require_open(named)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(named or "auto", **options)
    except ConnectionError as error:
        if named not in (None, "auto") or "Could not find any" not in str(error):
            raise LoraFtError(f"no cluster to train on: {first_line(error)}", "see `ray status`") from error
        ray.init("local", num_cpus=allowed_cpus(), include_dashboard=False, **options)


def _require_open(address: str) -> None:
    """Raise an error if nothing listens at `address`, since Ray itself would retry for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in address:
        raise UsageError(f"the cluster's address {address} is not HOST:PORT", "give what `ray start --head` printed")
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError as error:
        raise LoraFtError(
            f"no cluster answers at {address} ({error.strerror or first_line(error)})",
            "start one with `ray start --head`, or correct --address",
        ) from error


def _places(resources: Mapping[str, float], portion: ResourceRequest) -> int:
    """Return the number of groups that fit on a node at the same time."""
    counts = [resources.get("CPU", 0.0) / portion.cpus]
    if portion.gpus:
        counts.append(resources.get("GPU", 0.0) // 1 * (1 / portion.gpus // 1))
    return int(min(counts))


def _size(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"

"""Train adapter groups on a Ray cluster. Ray restarts the task of a lost worker, which resumes from its snapshot.

Each group is one Ray task, which trains on the resources of a `ResourceRequest`. A `ProgressActor` collects the reports
of all groups for the screen, and passes on the request to stop. Snapshots are written to a `Storage` that all nodes can
reach, so a group can be restarted on another node.
"""

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

_POLL_INTERVAL = 0.5  # seconds between polls of the reports
_INSPECTION_TIMEOUT = 30.0  # seconds to wait for descriptions of busy nodes


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
            raise UsageError(f"an adapter group trains on one GPU at most (got {gpus:g})", "pass 1 or less, e.g. 0.5")
        self._ray, self._ours = _import_ray(), False

    def close(self) -> None:
        """See `Engine.close`."""
        if self._ours:
            self._ray.shutdown()

    def inspect(self, out: Path, precision: str, storage: str | None, dashboard: Dashboard) -> TrainingSite:
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
        self._request = request = self._choose_request([node["Resources"] for node in nodes.values()])
        places = {key: _places(node["Resources"], request) for key, node in nodes.items()}
        usable = {key: node for key, node in nodes.items() if places[key]}
        if not usable:
            sizes = "; ".join(
                f"{node['NodeManagerHostname']} has {_size(node['Resources'])}" for node in nodes.values()
            )
            raise UsageError(
                f"no node of the cluster has {request} for an adapter group ({sizes})",
                "request fewer CPUs or GPUs, or add a node",
            )
        if self._storage and storage is None:
            storage = f"{self._storage.rstrip('/')}/lora-ft-{secrets.token_hex(4)}"
        place = storage or str(out.absolute() / GROUPS_FOLDER)
        dashboard.stage("inspecting nodes", len(usable))
        descriptions = self._describe(usable, Storage(place), precision)
        first = next(
            (node for node in descriptions.values() if not node.precision.is_bf16), next(iter(descriptions.values()))
        )
        room = min(
            node.memory * (request.gpus or min(request.cpus / usable[key]["Resources"]["CPU"], 1.0))
            for key, node in descriptions.items()
        )
        total_places = sum(places.values())
        dashboard.note(
            f"{len(usable)} node{'s' * (len(usable) > 1)} with room for {total_places} groups of {request} at a time"
        )
        return TrainingSite(first.device, first.precision, int(room), total_places, storage)

    def _choose_request(self, resources: Sequence[Mapping[str, float]]) -> ResourceRequest:
        """Return the resources of one adapter group."""
        gpus = self._gpus
        if gpus is None:
            gpus = 1.0 if any(resource.get("GPU") for resource in resources) else 0.0
        cpus = self._cpus
        if cpus is None:
            cpus = 1.0 if gpus else min((resource["CPU"] for resource in resources if resource.get("CPU")), default=1.0)
        return ResourceRequest(cpus, gpus)

    def _describe(self, nodes: Mapping[str, Any], storage: Storage, precision: str) -> dict[str, RayNode]:
        """Return descriptions of the nodes. Busy nodes that do not answer in time are missing."""
        ray, name, token = self._ray, f"token-{secrets.token_hex(8)}", secrets.token_hex(8)
        storage.put(name, token)
        task = ray.remote(inspect_node)
        node_of = {}
        for key in nodes:
            affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(key, soft=False)
            options = {"num_cpus": 0, "num_gpus": self._request.gpus, "scheduling_strategy": affinity}
            node_of[task.options(**options).remote(storage.place, name, precision, self._request)] = key
        try:
            references, _ = ray.wait(list(node_of), num_returns=len(node_of), timeout=_INSPECTION_TIMEOUT)
            descriptions: dict[str, RayNode] = {}
            for reference in references or ray.wait(list(node_of))[0]:
                key = node_of[reference]
                try:
                    descriptions[key] = ray.get(reference)
                except ray.exceptions.RayError as error:
                    raise LoraFtError(
                        f"{nodes[key]['NodeManagerHostname']} cannot run lora-ft ({_cause(error)})",
                        "install the same lora-ft[train,ray] on every node",
                    ) from error
        finally:
            storage.drop(name)
        for node in descriptions.values():
            self._require(node, storage.place, token)
        return descriptions

    def _require(self, node: RayNode, place: str, token: str) -> None:
        """Raise UsageError for a node on which groups cannot train."""
        if node.version != version("lora-ft"):
            raise UsageError(
                f"{node.host} has lora-ft {node.version}, but this machine has {version('lora-ft')}",
                "install the same version on every node",
            )
        if self._request.gpus and node.device == "cpu":
            raise UsageError(
                f"torch finds no GPU on {node.host}",
                "install a torch build for its GPU, or pass --gpus-per-group 0",
            )
        if node.token != token:
            raise UsageError(
                f"{node.host} cannot read files that this machine writes to {place}",
                "pass an --out on storage that all nodes share, or --storage URL, e.g. s3://bucket/folder",
            )

    def run(self, jobs: Sequence[GroupJob], site: TrainingSite, dashboard: Dashboard) -> EngineResult:
        """See `Engine.run`."""
        ray = self._ray
        this_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        progress_actor = ray.remote(ProgressActor).options(num_cpus=0, scheduling_strategy=this_node).remote()
        # one process per group, so that no group inherits another's torch state or memory
        task = ray.remote(max_calls=1)(train_on_node)
        options = {
            "num_cpus": self._request.cpus,
            "num_gpus": self._request.gpus,
            "max_retries": self._retries,
            "scheduling_strategy": "SPREAD",
        }
        storage = Storage(site.storage or str(jobs[0].out / GROUPS_FOLDER))
        if site.storage:
            for job in jobs:
                _write_tasks(job)
        waiting = {job.number: _waiting_rows(job) for job in jobs}
        group_dashboard = GroupDashboard(
            waiting, {job.number: max(row.steps for row in waiting[job.number]) for job in jobs}, dashboard
        )
        pending = {
            task.options(name=f"group {job.number}", **options).remote(
                job, storage.place, site.storage is None, self._request, progress_actor
            ): job
            for job in jobs
        }
        outcome = EngineResult({}, {})
        interrupts = Interrupts()
        interrupts.take()
        try:
            self._follow(
                pending, progress_actor, group_dashboard, outcome, storage if site.storage else None, interrupts
            )
        finally:
            interrupts.release()
        if site.storage and not outcome.broken:
            storage.clear()
        return outcome

    def _follow(
        self,
        pending: dict[Any, GroupJob],
        progress_actor: Any,
        group_dashboard: GroupDashboard,
        outcome: EngineResult,
        storage: Storage | None,
        interrupts: Interrupts,
    ) -> None:
        """Follow groups until all have ended."""
        ray, started, notified, stopped = self._ray, set[int](), False, 0
        while pending:
            finished, _ = ray.wait(list(pending), timeout=_POLL_INTERVAL)
            reports = ray.get(progress_actor.collect.remote())
            group_dashboard.show(reports)
            started |= {report.group for report in reports}
            for reference in finished:
                job = pending.pop(reference)
                result = self._result(reference)
                stopped += result.stopped
                outcome.failed.update(result.failed)
                if result.error:
                    outcome.broken.update(dict.fromkeys(job.names, result.error))
                if not result.stopped:
                    group_dashboard.end(job.number, result.error)
                if storage and not result.stopped and not result.error:
                    _fetch_runs(job, storage)
            if interrupts.caught and not notified:
                notified = True
                ray.get(progress_actor.stop.remote())
            if notified and not any(job.number in started for job in pending.values()):
                break
        group_dashboard.show([])
        if stopped or pending:
            raise Interrupted(
                f"stopped with {stopped + len(pending)} groups unfinished",
                "repeat the command with --resume to continue",
            ).by(interrupts.caught)

    def _result(self, reference: Any) -> NodeResult:
        """Return the result of a finished Ray task. A worker that was lost too often counts as an error."""
        try:
            result: NodeResult = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            return NodeResult(error=_cause(error))
        except self._ray.exceptions.RayError as error:
            reason = f"its worker was lost more than {self._retries} times"
            return NodeResult(error=f"{reason} ({type(error).__name__}: {first_line(error)})")
        return result


def _cause(error: Exception) -> str:
    """Return the first line of the error that was raised on the node."""
    return first_line(getattr(error, "cause", None) or error)


def _write_tasks(job: GroupJob) -> None:
    """Write the tasks into their working folders, where `RunFolder.resume` reads them."""
    for data in job.data:
        working = working_folder(job.out / data.task.name)
        working.mkdir(exist_ok=True)
        save_task(data.task, working / TASK)


def _fetch_runs(job: GroupJob, storage: Storage) -> None:
    """Fetch the finished runs of an adapter group from the storage."""
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    storage.fetch(job.number, job.folder)
    for name in job.names:
        if is_run(job.folder / name):
            replace_folder(job.folder / name, job.out / name)
            shutil.rmtree(working_folder(job.out / name), ignore_errors=True)


def _waiting_rows(job: GroupJob) -> list[AdapterStatus]:
    """Return the status of a group's adapters before it begins."""
    return [
        AdapterStatus(
            data.task.name,
            0,
            job.plans[data.task.name].steps,
            None,
            data.task.train.metric_for_best_model,
            None,
            None,
            None,
            WAITING,
        )
        for data in job.data
    ]


def _import_ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--engine ray requires the package {error.name}", "run `pip install 'lora-ft[ray]'`"
        ) from error
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
            raise LoraFtError(
                f"the Ray cluster is not reachable ({first_line(error)})", "check it with `ray status`"
            ) from error
        ray.init("local", num_cpus=allowed_cpus(), include_dashboard=False, **options)


def _require_open(address: str) -> None:
    """Raise an error if no process listens at `address`, since Ray itself would retry for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in address:
        raise UsageError(
            f"the cluster's address is not HOST:PORT (got {address})", "pass the address that `ray start --head` prints"
        )
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError as error:
        raise LoraFtError(
            f"no cluster answers at {address} ({error.strerror or first_line(error)})",
            "start one with `ray start --head`, or correct --address",
        ) from error


def _places(resources: Mapping[str, float], request: ResourceRequest) -> int:
    """Return the number of groups that fit on a node at the same time."""
    counts = [resources.get("CPU", 0.0) / request.cpus]
    if request.gpus:
        counts.append(resources.get("GPU", 0.0) // 1 * (1 / request.gpus // 1))
    return int(min(counts))


def _size(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"

"""Train one adapter group on a node of a cluster."""

from __future__ import annotations

import platform
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lora_ft.core.interrupts import Interrupted
from lora_ft.models.bases import find_base
from lora_ft.multi_lora.group_job import GroupJob, open_frozen_base, set_threads, train_group
from lora_ft.multi_lora.group_member import failure_text
from lora_ft.multi_lora.leased_snapshots import LeasedSnapshots
from lora_ft.multi_lora.progress_server import RemoteProgress
from lora_ft.multi_lora.ray_node import ResourceRequest
from lora_ft.multi_lora.storage import Storage
from lora_ft.runs.group_record import GROUPS_RECORD

_INTERVAL = 0.5  # seconds between reports


@dataclass(frozen=True)
class NodeResult:
    """Result of an adapter group.

    Attributes:
        failed: Reason by task name, for tasks that left without a run.
        stopped: True if the group stopped on request, with a snapshot.
        error: Error that ended the group, or "".
    """

    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    error: str = ""


def train_on_node(job: GroupJob, place: str, shared: bool, request: ResourceRequest, progress_actor: Any) -> NodeResult:
    """Train an adapter group on this node, from its last snapshot if there is one.

    Errors are returned in the result. Only a second Ctrl-C raises.

    Args:
        job: Group to train.
        place: Folder or URL of the storage.
        shared: True if all nodes share the folder of the runs.
        request: Resources of the group.
        progress_actor: Handle of the actor `ProgressActor`.
    """
    import ray

    reporter = RemoteProgress(
        job.number, lambda report: bool(ray.get(progress_actor.report.remote(report))), _INTERVAL, time.monotonic
    )
    reporter.note(f"{len(job.names)} adapter{'s' * (len(job.names) > 1)} on {platform.node()}")
    reporter.flush()
    if reporter.stopping:
        return NodeResult(stopped=True)
    try:
        storage = Storage(place)
        if shared:
            if storage.get(GROUPS_RECORD) is None:
                return NodeResult(error=f"{platform.node()} cannot read {place}")
            return NodeResult(
                _train(job, LeasedSnapshots(job.folder, storage, job.number, run=job.run), request, reporter)
            )
        with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
            moved = replace(job, out=Path(scratch))
            storage.fetch(job.number, moved.out)
            snapshots = LeasedSnapshots(moved.folder, storage, job.number, moved.out, job.run)
            failed = _train(moved, snapshots, request, reporter)
            snapshots.send()
            return NodeResult(failed)
    except Interrupted:
        return NodeResult(stopped=True)
    except Exception as error:
        return NodeResult(error=failure_text(error))
    finally:
        reporter.flush()


def _train(
    job: GroupJob, snapshots: LeasedSnapshots, request: ResourceRequest, reporter: RemoteProgress
) -> dict[str, str]:
    task, plan = job.first
    set_threads(plan.device, max(1, int(request.cpus)))
    if plan.device == "cuda" and request.gpus < 1:
        torch.cuda.set_per_process_memory_fraction(request.gpus)  # so that no group takes another's memory
    base = find_base(task.base)  # this node's copy
    job = replace(job, data=[replace(data, base=base) for data in job.data])
    return train_group(
        job, lambda: open_frozen_base(task, base, plan.device), snapshots, reporter, lambda: reporter.stopping
    )

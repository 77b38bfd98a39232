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

_EVERY = 0.5  # seconds between reports


@dataclass(frozen=True)
class NodeResult:
    """Result of an adapter group.

    Attributes:
        failed: Names of tasks that left without a run, with the reason.
        stopped: True if the group was told to stop and left a snapshot.
        fault: Error that ended the group, or "".
    """

    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    fault: str = ""


def train_on_node(job: GroupJob, place: str, shared: bool, portion: ResourceRequest, progress_actor: Any) -> NodeResult:
    """Train an adapter group on this node, from its last snapshot if there is one.

    Errors are returned as a fault. Only a second Ctrl-C raises.

    Args:
        job: Group to train.
        place: Folder or URL of the storage.
        shared: True if all nodes share the folder of the runs.
        portion: Resources of the group.
        progress_actor: Handle of the actor `ProgressActor`.
    """
    import ray

    reporter = RemoteProgress(
        job.number, lambda report: bool(ray.get(progress_actor.report.remote(report))), _EVERY, time.monotonic
    )
    reporter.note(f"{len(job.names)} adapter{'s' * (len(job.names) > 1)} on {platform.node()}")
    reporter.flush()
    if reporter.stopping:
        return NodeResult(stopped=True)
    try:
        storage = Storage(place)
        if shared:
            if storage.get(GROUPS_RECORD) is None:
                return NodeResult(fault=f"{platform.node()} does not see {place}")
            return NodeResult(
                _train(job, LeasedSnapshots(job.folder, storage, job.number, run=job.run), portion, reporter)
            )
        with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
            moved = replace(job, out=Path(scratch))
            storage.fetch(job.number, moved.out)
            snapshots = LeasedSnapshots(moved.folder, storage, job.number, moved.out, job.run)
            failed = _train(moved, snapshots, portion, reporter)
            snapshots.send()
            return NodeResult(failed)
    except Interrupted:
        return NodeResult(stopped=True)
    except Exception as error:
        return NodeResult(fault=failure_text(error))
    finally:
        reporter.flush()


def _train(
    job: GroupJob, snapshots: LeasedSnapshots, portion: ResourceRequest, reporter: RemoteProgress
) -> dict[str, str]:
    task, plan = job.first
    set_threads(plan.device, max(1, int(portion.cpus)))
    if plan.device == "cuda" and portion.gpus < 1:
        torch.cuda.set_per_process_memory_fraction(portion.gpus)  # so that no group takes another's memory
    base = find_base(task.base)  # this node's copy
    job = replace(job, materials=[replace(data, base=base) for data in job.materials])
    return train_group(
        job, lambda: open_frozen_base(task, base, plan.device), snapshots, reporter, lambda: reporter.stopping
    )

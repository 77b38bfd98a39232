"""What a node of a cluster runs: one pack."""

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
    """How a pack ended.

    Attributes:
        failed: names of tasks that left without a run, and why.
        stopped: it was told to, and left a snapshot.
        fault: what broke it down, or "".
    """

    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    fault: str = ""


def train_on_node(work: GroupJob, place: str, shared: bool, portion: ResourceRequest, desk: Any) -> NodeResult:
    """Train a pack on this node, from its last snapshot if there is one. Nothing is raised but by a second Ctrl-C.

    Args:
        work: the pack.
        place: of the storage.
        shared: whether the runs' folder is one that all nodes reach.
        portion: that it may use.
        desk: handle of the actor `Desk`.
    """
    import ray

    reporter = RemoteProgress(work.number, lambda said: bool(ray.get(desk.report.remote(said))), _EVERY, time.monotonic)
    reporter.note(f"{len(work.names)} adapter{'s' * (len(work.names) > 1)} on {platform.node()}")
    reporter.flush()
    if reporter.stopping:
        return NodeResult(stopped=True)
    try:
        storage = Storage(place)
        if shared:
            if storage.get(GROUPS_RECORD) is None:
                return NodeResult(fault=f"{platform.node()} does not see {place}")
            return NodeResult(
                _train(work, LeasedSnapshots(work.folder, storage, work.number, run=work.run), portion, reporter)
            )
        with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
            moved = replace(work, out=Path(scratch))
            storage.fetch(work.number, moved.out)
            held = LeasedSnapshots(moved.folder, storage, work.number, moved.out, work.run)
            failed = _train(moved, held, portion, reporter)
            held.send()
            return NodeResult(failed)
    except Interrupted:
        return NodeResult(stopped=True)
    except Exception as error:
        return NodeResult(fault=failure_text(error))
    finally:
        reporter.flush()


def _train(work: GroupJob, held: LeasedSnapshots, portion: ResourceRequest, reporter: RemoteProgress) -> dict[str, str]:
    task, plan = work.first
    set_threads(plan.device, max(1, int(portion.cpus)))
    if plan.device == "cuda" and portion.gpus < 1:
        torch.cuda.set_per_process_memory_fraction(portion.gpus)  # or one pack could take another one's memory
    base = find_base(task.base)  # this node's copy
    work = replace(work, materials=[replace(data, base=base) for data in work.materials])
    return train_group(
        work, lambda: open_frozen_base(task, base, plan.device), held, reporter, lambda: reporter.stopping
    )

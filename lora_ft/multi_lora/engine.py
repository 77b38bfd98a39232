"""Engines that train adapter groups: in this process one after another, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lora_ft.core.errors import UsageError
from lora_ft.core.hardware import torch_threads
from lora_ft.core.interrupts import Interrupted, Interrupts
from lora_ft.core.memory import device_memory
from lora_ft.multi_lora.dashboard import Dashboard
from lora_ft.multi_lora.group_job import GroupJob, open_frozen_base, set_threads, train_group
from lora_ft.multi_lora.snapshots import Snapshots
from lora_ft.tasks.schema import Task
from lora_ft.training.compute_dtype import ComputeDtype, choose_compute_dtype
from lora_ft.training.memory_estimates import StepOptions
from lora_ft.training.plan import Choices, Plan, make_plan, training_device
from lora_ft.training.prepared_data import PreparedData


@dataclass(frozen=True)
class TrainingSite:
    """Hardware and storage on which groups train.

    Attributes:
        device: "cpu", "cuda" or "mps".
        precision: Precision in which the groups train.
        room: Memory available to one adapter group, in bytes.
        places: Number of groups that train at the same time.
        storage: Folder or URL of the snapshots, if they are not below the runs.
    """

    device: str
    precision: ComputeDtype
    room: int
    places: int = 1
    storage: str | None = None

    def plan(self, data: PreparedData) -> Plan:
        """Return the plan of a task as if it trained alone, but without compiling."""
        plan = make_plan(data.task, data.base.config, data.rows, 1, Choices(self.precision, False))
        return replace(plan, device=self.device, compile_reason="groups are not compiled")

    def step_options(self, task: Task) -> StepOptions:
        """Return the options of a group's step for memory estimates. `task` is any task of the group."""
        recomputed = task.train.gradient_checkpointing
        return StepOptions(bf16=self.precision.is_bf16, checkpointing=recomputed, cpu=self.device == "cpu")


@dataclass(frozen=True)
class EngineResult:
    """Results of all groups.

    Attributes:
        failed: Reason by task name, for tasks that ended without a run.
        broken: Reason by task name, for tasks whose group failed as a whole and can be resumed.
    """

    failed: dict[str, str]
    broken: dict[str, str]


class Engine(Protocol):
    """Interface of an engine that trains adapter groups."""

    def inspect(self, out: Path, precision: str, storage: str | None, dashboard: Dashboard) -> TrainingSite:
        """Return the hardware and storage for the groups, before they are planned.

        Args:
            out: Folder of the runs.
            precision: Setting train.precision of the tasks.
            storage: Storage of the site on which resumed groups began, or None; None for new groups.
            dashboard: Receives notes.

        Raises:
            UsageError: No group can train there.
        """

    def run(self, jobs: Sequence[GroupJob], site: TrainingSite, dashboard: Dashboard) -> EngineResult:
        """Train groups until they end or Ctrl-C is pressed.

        Raises:
            Interrupted: A signal arrived. All groups can be resumed.
        """

    def close(self) -> None:
        """Release the resources of the engine."""


class LocalEngine:
    """Engine that trains groups in this process, one after another, on one copy of their base.

    The base stays in memory between calls of `run`, whose groups must share it, until `close`.

    Args:
        interrupts: A listener of the caller that listens between calls of `run`, too. Default: one for each call.
    """

    def __init__(self, interrupts: Interrupts | None = None) -> None:
        self._model: Any = None
        self._interrupts = interrupts

    def inspect(self, out: Path, precision: str, storage: str | None, dashboard: Dashboard) -> TrainingSite:
        """See `Engine.inspect`."""
        if storage:
            raise UsageError(f"the snapshots of {out} are stored in {storage}", "resume with --engine ray")
        device = training_device()
        return TrainingSite(device, choose_compute_dtype(precision, device), device_memory(device))

    def run(self, jobs: Sequence[GroupJob], site: TrainingSite, dashboard: Dashboard) -> EngineResult:
        """See `Engine.run`. An error of a whole group is raised."""
        set_threads(site.device, torch_threads())
        data = jobs[0].data[0]

        def open_model() -> Any:
            if self._model is None:
                self._model = open_frozen_base(data.task, data.base, site.device)
            return self._model

        failed: dict[str, str] = {}
        interrupts = self._interrupts or Interrupts()
        if interrupts is not self._interrupts:
            interrupts.take()
        stop: Callable[[], bool] = lambda: bool(interrupts.caught)  # noqa: E731
        try:
            for job in jobs:
                failed |= train_group(job, open_model, Snapshots(job.folder, job.run), dashboard, stop)
        except Interrupted as error:
            self.close()  # the model still has the layers of the group
            raise error.by(interrupts.caught) from None
        except BaseException:
            self.close()
            raise
        finally:
            if interrupts is not self._interrupts:
                interrupts.release()
        return EngineResult(failed, {})

    def close(self) -> None:
        """See `Engine.close`."""
        self._model = None

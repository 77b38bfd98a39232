"""Where packs train: in this process one after another, or wherever another engine takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from lora_ft.core.errors import UsageError
from lora_ft.core.hardware import allowed_cpus
from lora_ft.core.interrupts import Interrupted, Interrupts
from lora_ft.core.memory import device_memory
from lora_ft.multi_lora.dashboard import Dashboard
from lora_ft.multi_lora.group_job import GroupJob, open_frozen_base, set_threads, train_group
from lora_ft.multi_lora.snapshots import Snapshots
from lora_ft.training.compute_dtype import ComputeDtype, choose_compute_dtype
from lora_ft.training.plan import training_device


@dataclass(frozen=True)
class TrainingSite:
    """What packs find where they train.

    Attributes:
        device: "cpu", "cuda" or "mps".
        precision: for tasks that ask for that of the survey.
        room: bytes that a pack may take.
        places: packs that train at the same time.
        storage: where snapshots lie, if not below the runs.
    """

    device: str
    precision: ComputeDtype
    room: int
    places: int = 1
    storage: str | None = None


@dataclass(frozen=True)
class EngineResult:
    """How packs ended.

    Attributes:
        failed: names of tasks that left without a run, and why.
        broken: names of tasks whose pack broke down with them, and why; it can be resumed.
    """

    failed: dict[str, str]
    broken: dict[str, str]


class Engine(Protocol):
    """Trains packs."""

    def survey(self, out: Path, asked: str, storage: str | None, board: Dashboard) -> TrainingSite:
        """Look at where packs would train, before they are planned.

        Args:
            out: folder of the runs.
            asked: train.precision of the tasks.
            storage: as of the site on which what is resumed began; None also where it is new.
            board: told what there is to know.

        Raises:
            UsageError: nothing can train there.
        """

    def run(self, works: Sequence[GroupJob], site: TrainingSite, board: Dashboard) -> EngineResult:
        """Train packs, each to its end or until Ctrl-C.

        Raises:
            Interrupted: A signal came; everything can be resumed.
        """

    def close(self) -> None:
        """Leave the place as it was."""


class LocalEngine:
    """This process: packs train one after another, on one copy of their base."""

    def survey(self, out: Path, asked: str, storage: str | None, board: Dashboard) -> TrainingSite:
        """See `Engine.survey`."""
        if storage:
            raise UsageError(f"the snapshots of {out} lie in {storage}", "resume with --engine ray")
        device = training_device()
        return TrainingSite(device, choose_compute_dtype(asked, device), device_memory(device))

    def run(self, works: Sequence[GroupJob], site: TrainingSite, board: Dashboard) -> EngineResult:
        """See `Engine.run`; what breaks one pack is raised."""
        set_threads(site.device, allowed_cpus())
        data = works[0].materials[0]
        open_model = cache(lambda: open_frozen_base(data.task, data.base, site.device))
        failed: dict[str, str] = {}
        interrupts = Interrupts()
        interrupts.take()
        stop: Callable[[], bool] = lambda: bool(interrupts.caught)  # noqa: E731
        try:
            for work in works:
                failed |= train_group(work, open_model, Snapshots(work.folder, work.run), board, stop)
        except Interrupted as error:
            raise error.by(interrupts.caught) from None
        finally:
            interrupts.release()
        return EngineResult(failed, {})

    def close(self) -> None:
        """See `Engine.close`."""

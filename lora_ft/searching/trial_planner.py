"""Plan trials: the task, the number of steps and the rungs of each, and how many fit into memory together."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lora_ft.core.errors import LoraFtError
from lora_ft.multi_lora.engine import TrainingSite
from lora_ft.multi_lora.planner import MemoryNeed, group_memory, require_groupable
from lora_ft.runs.search_record import Trial
from lora_ft.searching.halving import Ladder
from lora_ft.tasks.error_details import InvalidTaskError
from lora_ft.tasks.schema import Task
from lora_ft.tasks.search import Space, with_settings
from lora_ft.training.memory_estimates import Shape
from lora_ft.training.plan import Plan
from lora_ft.training.prepared_data import PreparedData

EARLY_ROWS = 128  # most validation rows at the first rung


@dataclass(frozen=True)
class TrialPlanner:
    """Planner of the trials of one search, which share base and rows.

    Attributes:
        data: Prepared data of the task.
        site: Device and precision of the training.
        ladder: Rungs of the search.
    """

    data: PreparedData
    site: TrainingSite
    ladder: Ladder
    _plans: dict[str, Plan] = field(default_factory=dict)

    def task(self, trial: Trial) -> Task:
        """Return the task of a trial."""
        settings = trial.settings | {"train.seed": trial.seed, "train.eval_every": self.ladder.interval(trial.steps)}
        return with_settings(self.data.task, settings).model_copy(update={"name": trial.name})

    def prepared(self, trial: Trial) -> PreparedData:
        """Return the prepared data of a trial on its way to its next rung.

        At the first rung, which every trial reaches, some of the validation rows are enough to tell hopeless trials.
        """
        validation = self.data.validation
        if self.ladder.is_early(trial):
            validation = validation[:: math.ceil(len(validation) / EARLY_ROWS)]  # they are sorted by length
        return replace(self.data, task=self.task(trial), validation=validation)

    def plan(self, trial: Trial) -> Plan:
        """Return the plan of a trial, which is made once, since peft then adapts every layer."""
        if trial.name not in self._plans:
            self._plans[trial.name] = self.site.plan(replace(self.data, task=self.task(trial)))
        return self._plans[trial.name]

    def trial(self, number: int, settings: Mapping[str, Any]) -> Trial:
        """Return a new trial. It is failed if the task does not allow its combination of values."""
        task = self.data.task
        trial = Trial(number, f"{task.name}-{number:03}", dict(settings), task.train.seed, 0, 0)
        try:
            require_groupable([self.task(trial)])
            plan = self.plan(trial)
        except LoraFtError as error:
            trial.state, trial.reason = "failed", error.message
            return trial
        trial.parameters, trial.steps = plan.trainable, plan.steps
        return trial

    def repetition(self, trial: Trial, number: int, seed: int) -> Trial:
        """Return a trial with the settings of another one and another seed."""
        return replace(
            trial,
            number=number,
            name=f"{trial.name}-seed-{seed}",
            seed=seed,
            repeats=trial.number,
            state="waiting",
            step=0,
            scores=[],
            curve=[],
            left=0,
        )

    def width(self, space: Space, size: int) -> int:
        """Return the number of trials that train together: at most `size`, and as many of the largest as fit."""
        task = self.data.task
        for key in space.values:
            for value in space.extremes(key):
                with contextlib.suppress(InvalidTaskError):  # two values may exclude each other
                    task = max(task, with_settings(task, {key: value}), key=lambda task: self._memory(task, 1))
        return next((count for count in range(size, 1, -1) if self._memory(task, count) <= self.site.room), 1)

    def _memory(self, task: Task, count: int) -> int:
        data = replace(self.data, task=task)
        needs = [MemoryNeed.of(data, self.site.plan(data))] * count
        return group_memory(Shape.of(data.base.config), needs, self.site.step_options(task)).total

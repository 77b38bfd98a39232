"""Asynchronous successive halving (ASHA, arXiv 1810.05934): which trial trains on, and how far.

Training every trial to its end spends most steps on trials that were behind from the start. Trials therefore pause at
rungs: at 1/16 and at 1/4 of their steps. Of all trials that have reached a rung, the best quarter is promoted to the
next one. Decisions do not wait for stragglers: as trials arrive, the quarter grows, and a paused trial may still be
promoted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_ft.runs.search_record import SearchRecord, Trial


@dataclass(frozen=True)
class Ladder:
    """Rungs of a search.

    Attributes:
        eta: One of `eta` trials is promoted, and trains `eta` times as long.
        rungs: Number of rungs below the end of the training.
    """

    eta: int = 4
    rungs: int = 2

    def interval(self, steps: int) -> int:
        """Return the steps between evaluations, for a plan of `steps` steps. The first rung has one of its own."""
        return max(1, steps // self.eta)

    def target(self, trial: Trial) -> int:
        """Return the step at which a trial pauses or ends next."""
        rung = len(trial.scores)
        if trial.repeats is not None or rung >= self.rungs:
            return trial.steps
        return min(max(rung + 1, trial.steps // self.eta ** (self.rungs - rung)), trial.steps)

    def is_early(self, trial: Trial) -> bool:
        """Return True on the way to the first rung, if the run that the trial may become is not evaluated there."""
        return trial.repeats is None and not trial.scores and self.target(trial) < self.interval(trial.steps)

    def best(self, trial: Trial, sign: int) -> float:
        """Return the best score on the way to the next rung, or NaN. Early scores, of fewer rows, count only there."""
        since = 0 if self.is_early(trial) else self.interval(trial.steps)
        return max((sign * score for step, score in trial.curve if step >= since), default=math.nan) * sign

    def promotion(self, record: SearchRecord) -> Trial | None:
        """Return a paused trial among the best 1/eta of a rung, from the highest rung that has one."""
        for rung in reversed(range(self.rungs)):
            arrived = self._arrived(record, rung)
            if trial := _first_paused(arrived[: len(arrived) // self.eta], rung):
                return trial
        return None

    def last_chance(self, record: SearchRecord) -> Trial | None:
        """Return a paused trial that is needed for `finalists` to finish, when no further trial begins.

        A rung with fewer than `eta` times as many trials would promote too few of them. The lowest rung comes first,
        and a rung must be settled: no trial may be on its way to it.
        """
        for rung in range(self.rungs):
            if any(len(trial.scores) <= rung for trial in record.running()):
                return None
            alive = [trial for trial in self._arrived(record, rung) if trial.state != "failed"]
            if trial := _first_paused(alive[: record.settings.finalists], rung):
                return trial
        return None

    def _arrived(self, record: SearchRecord, rung: int) -> list[Trial]:
        """Return the trials that have reached a rung, from the best to the worst there."""
        arrived = [trial for trial in record.first_seeds if len(trial.scores) > rung]
        return sorted(arrived, key=lambda trial: (-record.sign * trial.scores[rung], trial.number))

    def reason(self, record: SearchRecord, trial: Trial) -> str:
        """Return why a paused trial was never promoted."""
        rung = len(trial.scores) - 1
        arrived = self._arrived(record, rung)
        return f"rank {arrived.index(trial) + 1} of {len(arrived)} after {trial.step:,} of {trial.steps:,} steps"


def _first_paused(trials: Sequence[Trial], rung: int) -> Trial | None:
    return next((trial for trial in trials if trial.state == "paused" and len(trial.scores) == rung + 1), None)

"""Train trials in rounds: one adapter group from one decision to the next.

A round ends when the first of its trials reaches a rung or its end. Every trial then has a run or a resume point, so
that the next group may have other members: promoted and new trials take the places of those that left. Forming a group
of eight adapters of FLAN-T5-small takes 2 s on two CPU cores, as long as one of its steps. Rounds of a dozen steps hide
that, and the step needs no code for joining members.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path

from lora_ft.multi_lora.dashboard import Dashboard
from lora_ft.multi_lora.engine import Engine
from lora_ft.multi_lora.group_job import GroupJob
from lora_ft.multi_lora.resume_point import Pause
from lora_ft.reports.curves import read_log
from lora_ft.runs.group_record import GROUPS_FOLDER
from lora_ft.runs.run import LOG, Run, is_run, working_folder
from lora_ft.runs.search_record import TRIALS, Round, SearchRecord, Trial
from lora_ft.searching.halving import Ladder
from lora_ft.searching.sampler import propose
from lora_ft.searching.trial_planner import TrialPlanner
from lora_ft.tasks.search import Space


def fill(record: SearchRecord, planner: TrialPlanner, space: Space) -> None:
    """Begin and continue trials until the group is full or nothing is left to train."""
    while len(record.running()) < record.settings.group_size and (trial := _next_trial(record, planner, space)):
        trial.state = "running"


def _next_trial(record: SearchRecord, planner: TrialPlanner, space: Space) -> Trial | None:
    """Return the next trial: a promoted one, else a new one, else one that the final comparison needs."""
    if trial := planner.ladder.promotion(record):
        return trial
    while not _is_spent(record):
        settings = propose(space, record, planner.data.task.train.seed)
        if settings is None:
            break
        trial = planner.trial(len(record.trials), settings)
        record.trials.append(trial)
        if trial.state != "failed":
            return trial
    if trial := planner.ladder.last_chance(record):
        return trial
    repeated = {trial.repeats for trial in record.trials}
    for finalist in _certain_finalists(record, planner.ladder):
        if finalist.number not in repeated:
            for more in range(1, record.settings.seeds):
                repetition = planner.repetition(finalist, len(record.trials), finalist.seed + more)
                record.trials.append(repetition)
    return next((trial for trial in record.trials if trial.state == "waiting"), None)


def _certain_finalists(record: SearchRecord, ladder: Ladder) -> list[Trial]:
    """Return the trials that will be compared, once that is certain: at the latest when all have finished.

    Their repetitions train beside them, so that the last pass is not nearly empty.
    """
    if not record.running():
        return finalists(record)
    last = [trial for trial in record.first_seeds if len(trial.scores) >= ladder.rungs and trial.state != "paused"]
    undecided = any(len(trial.scores) < ladder.rungs for trial in record.running() if trial.repeats is None)
    alive = [trial for trial in last if trial.state != "failed"]
    return alive if not undecided and len(alive) <= record.settings.finalists else []


def finalists(record: SearchRecord) -> list[Trial]:
    """Return the best trials that have finished."""
    finished = [trial for trial in record.first_seeds if trial.state == "finished"]
    return record.best(finished)[: record.settings.finalists]


def _is_spent(record: SearchRecord) -> bool:
    """Return True if no further trial begins."""
    settings = record.settings
    return (
        len(record.first_seeds) >= settings.trials
        or (settings.steps is not None and record.steps >= settings.steps)
        or (settings.minutes is not None and record.seconds >= 60 * settings.minutes)
    )


def train_round(record: SearchRecord, planner: TrialPlanner, engine: Engine, out: Path, dashboard: Dashboard) -> None:
    """Train the running trials until the first reaches its next rung, and record their scores.

    Raises:
        Interrupted: A signal arrived; a snapshot was saved.
    """
    began, number = time.perf_counter(), len(record.rounds) + 1
    trials = record.running()
    steps = min(planner.ladder.target(trial) - trial.step for trial in trials)
    before = {trial.number: trial.step for trial in trials}
    job = GroupJob(
        number,
        [planner.prepared(trial) for trial in trials],
        {trial.name: planner.plan(trial) for trial in trials},
        out / TRIALS,
        record.identity,
        frozenset(trial.name for trial in trials if trial.step),
        {
            trial.name: Pause(trial.step + steps, is_scored=trial.step + steps == planner.ladder.target(trial))
            for trial in trials
            if trial.step + steps < trial.steps
        },
    )
    failed = engine.run([job], planner.site, dashboard).failed
    for trial in trials:
        _record_state(trial, record, planner.ladder, out, failed.get(trial.name, ""), steps)
        trial.left = number if trial.state != "running" else trial.left
    trained = sum(trial.step - before[trial.number] for trial in trials)
    record.rounds.append(Round([trial.number for trial in trials], trained, round(time.perf_counter() - began, 3)))


def forget_rounds(record: SearchRecord, out: Path) -> None:
    """Delete the snapshots of earlier rounds, which the record no longer needs."""
    for folder in (out / TRIALS / GROUPS_FOLDER).glob("*"):
        if folder.name != str(len(record.rounds) + 1):
            shutil.rmtree(folder)


def _record_state(trial: Trial, record: SearchRecord, ladder: Ladder, out: Path, failure: str, steps: int) -> None:
    """Update a trial after a round of `steps` steps."""
    place = out / TRIALS / trial.name
    finished = is_run(place)
    trial.curve = _curve(place if finished else working_folder(place), record.metric)
    best = ladder.best(trial, record.sign)
    if failure:
        trial.state, trial.reason = "failed", failure
        return
    trial.step += steps
    if finished:
        metrics = Run(place).metrics
        trial.step = metrics["steps"]
        best = math.nan if metrics["best_metric"] is None else metrics["best_metric"]
        trial.state = "finished"
        missing = ladder.rungs + 1 - len(trial.scores) if trial.repeats is None else 1
        trial.scores += [best] * missing
    elif trial.step == ladder.target(trial):
        trial.state = "paused"
        trial.scores.append(best)
    if trial.state != "running" and math.isnan(best):
        trial.state, trial.scores, trial.reason = "failed", [], "its validation score is not finite"


def _curve(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Return steps and validation scores of a training so far."""
    key = f"eval_{metric}"
    values = [(int(entry["step"]), entry[key]) for entry in read_log(folder / LOG) if key in entry]
    return [(step, float(value)) for step, value in values if value is not None and math.isfinite(value)]

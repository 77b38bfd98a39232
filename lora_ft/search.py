"""The verb `search`: find good values for keys of a task, stopping trials that are behind, and train the winner."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_ft.core.disk import keeping
from lora_ft.core.distributed import processes
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import replace_folder, sync_tree, write_text
from lora_ft.core.interrupts import Interrupted, Interrupts, name_of
from lora_ft.core.locks import locked
from lora_ft.core.output_paths import followed, refuse_existing
from lora_ft.core.plain import plain
from lora_ft.core.progress import Progress
from lora_ft.core.staging import staging_name, tidy
from lora_ft.models.bases import find_base
from lora_ft.multi_lora.dashboard import Dashboard, as_dashboard
from lora_ft.multi_lora.engine import LocalEngine
from lora_ft.multi_lora.planner import require_groupable
from lora_ft.reports.run_report import write_run_report
from lora_ft.reports.search_page import render
from lora_ft.runs.group_record import GROUPS_FOLDER
from lora_ft.runs.run import Run, working_folder
from lora_ft.runs.search_record import (
    SEARCH_PAGE,
    SEARCH_RECORD,
    STUDY,
    TRIALS,
    WINNER,
    SearchRecord,
    SearchSettings,
    read_search,
)
from lora_ft.searching.final_comparison import choose_winner
from lora_ft.searching.halving import Ladder
from lora_ft.searching.rounds import fill, finalists, forget_rounds, train_round
from lora_ft.searching.sampler import export_study, importances, require_optuna
from lora_ft.searching.trial_planner import TrialPlanner
from lora_ft.tasks.files import as_task, load_search
from lora_ft.tasks.inputs import input_paths
from lora_ft.tasks.schema import Task
from lora_ft.tasks.search import Space, read_space
from lora_ft.training.compute_dtype import ComputeDtype
from lora_ft.training.prepared_data import prepare


@dataclass(frozen=True)
class SearchResult:
    """The result of `search`.

    Attributes:
        out: Folder of the search.
        run: Run of the winner.
        record: Content of search.json: trials, rounds and finalists.
    """

    out: Path
    run: Run
    record: SearchRecord

    def __str__(self) -> str:
        record = self.record
        tried = f"{len(record.first_seeds)} trials, {record.runs_tried} runs, {record.steps:,} steps"
        return f"{record.winner}: best of {tried}, in {self.run.folder}"

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the types of JSON."""
        return {"out": str(self.out), "run": self.run.as_dict(), "search": self.record.as_dict()}


def search(
    task: Task | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    space: Mapping[str, Any] | Space | None = None,
    trials: int = 24,
    steps: int | None = None,
    minutes: float | None = None,
    finalists: int = 2,
    seeds: int = 2,
    group_size: int = 12,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SearchResult:
    """Search the values of a task's keys in one adapter group, and return the winner's run.

    Trials train together on one base. At 1/16 and 1/4 of its steps, a trial pauses; the best quarter of those that
    arrived there continues, and new trials take the places of the others. The best trials are repeated with further
    seeds. Of these, the smallest adapter that is not significantly worse than the best on validation rows wins.

    Args:
        task: Task, task file or recipe.
        out: Folder of the search. It receives the winner's run, search.json and search.html.
        space: Keys of `lora` and `train` with lists of values, or with `low`, `high` and `log`. Default: the key
            `search` of the task file.
        trials: Maximum number of trials.
        steps: Optimizer steps of all trials after which no trial begins.
        minutes: Minutes of training after which no trial begins.
        finalists: Number of finished trials to repeat and compare.
        seeds: Number of seeds of each finalist.
        group_size: Maximum number of trials trained in one pass; fewer if memory is short.
        resume: Continue an unfinished search. The result is the same as without the stop, unless `minutes` is set.
        overwrite: Replace an existing search.
        progress: Receives stages, steps and notes; a `Dashboard` also receives the status of every trial.

    Raises:
        UsageError: The space, the task or `out` cannot be used, or optuna is not installed.
        LoraFtError: All trials failed, or for the same reasons as in `train`.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP was received; the search can be resumed.
    """
    require_optuna()
    if processes() > 1:
        raise UsageError("a search trains in one process", "start it without torchrun")
    settings = SearchSettings(trials, steps, minutes, finalists, seeds, group_size)
    _check(settings)
    out = Path(out)
    loaded, checked = _load(task, space)
    require_groupable([loaded])
    place = followed(out) if resume else refuse_existing(out, overwrite=overwrite, inputs=input_paths(loaded))
    dashboard = as_dashboard(progress)
    with locked(place), keeping(place, "free some space, then add --resume to continue"):
        tidy(place)
        record = _started(loaded, checked, settings, place) if resume else None
        return _search(loaded, checked, settings, record, place, dashboard)


def _check(settings: SearchSettings) -> None:
    for name, value in vars(settings).items():
        if value is not None and value <= 0:
            raise UsageError(f"{name} is not positive (got {value})", "raise it")


def _load(task: Task | str | os.PathLike[str], space: Mapping[str, Any] | Space | None) -> tuple[Task, Space]:
    if space is None:
        if isinstance(task, Task):
            raise UsageError("a Task has no search space", "pass space={...}, or a task file with the key search")
        return load_search(os.fspath(task))
    loaded = as_task(task)
    return loaded, space if isinstance(space, Space) else read_space(dict(space), loaded)


def _started(task: Task, space: Space, settings: SearchSettings, out: Path) -> SearchRecord:
    """Return the record of an unfinished search of the same task, space and options."""
    if not (out / SEARCH_RECORD).is_file():
        raise UsageError(f"{out} contains no unfinished search to resume", "leave out --resume")
    record = read_search(out)
    if record.winner is not None:
        raise UsageError(f"the search in {out} is finished", "leave out --resume, or start over with --overwrite")
    now = _recorded(task, space)
    changed = [name for name, value in now.items() if value != getattr(record, name)]
    if replace(settings, group_size=0) != replace(record.settings, group_size=0):
        changed.append("options")
    if changed:
        raise UsageError(
            f"the search differs from the unfinished one in {out} ({', '.join(changed)})",
            "resume with the same task and options, or start over with --overwrite",
        )
    return record


def _recorded(task: Task, space: Space) -> dict[str, Any]:
    """Return the parts of a record that describe the task and the space."""
    return {
        "task": task.model_dump(mode="json", exclude_none=True),
        "space": {key: plain(values) for key, values in space.values.items()},
    }


def _search(
    task: Task, space: Space, settings: SearchSettings, record: SearchRecord | None, out: Path, dashboard: Dashboard
) -> SearchResult:
    """Run a search in a folder that the caller has locked, from its start or from the last round."""
    base, interrupts = find_base(task.base), Interrupts()
    if base.notice:
        dashboard.note(base.notice)
    with closing(LocalEngine(interrupts)) as engine:
        site = engine.inspect(out, task.train.precision, None, dashboard)
        if record:
            site = replace(site, precision=ComputeDtype(record.precision, "as when this search began"))
        dashboard.stage("reading rows")
        data = prepare(task, base, dashboard)
        if not data.splits.validation:
            raise UsageError(
                "the task has no validation rows, by which a search ranks its trials",
                "add data.validation, or data.split: {validation: 0.1}",
            )
        planner = TrialPlanner(data, site, Ladder())
        if record is None:
            width = planner.width(space, settings.group_size)
            metric = task.train.metric_for_best_model
            record = SearchRecord(
                **_recorded(task, space),
                settings=replace(settings, group_size=width),
                metric=metric,
                test_metric=task.evaluate.metric if metric == "loss" else metric,
                precision=site.precision.name,
                rows=data.record.digest,
                identity=secrets.token_hex(8),
            )
            shutil.rmtree(out, ignore_errors=True)  # of an earlier search, with --overwrite
        elif record.rows != data.record.digest:
            raise UsageError(
                f"the rows differ from those that the search in {out} began with",
                "restore them, or start over with --overwrite",
            )
        out.mkdir(parents=True, exist_ok=True)
        dashboard.note(f"precision {site.precision.name}: {site.precision.reason}")
        interrupts.take()
        try:
            for _ in _rounds(record, planner, space, out, dashboard):
                if interrupts.caught:
                    message = f"stopped by {name_of(interrupts.caught)} after round {len(record.rounds)}"
                    raise Interrupted(message, "add --resume to continue").by(interrupts.caught)
                train_round(record, planner, engine, out, dashboard)
        except Interrupted:
            _write_reports(record, space, out)
            raise
        finally:
            interrupts.release()
    finished = finalists(record)
    if not finished:
        failed = [trial for trial in record.trials if trial.state == "failed"]
        reason = f"{failed[0].name}: {failed[0].reason}" if failed else "none had any steps"
        raise LoraFtError(f"no trial of the search in {out} finished ({reason})", "change the search space")
    choose_winner(record, finished, data.splits.validation, out, dashboard)
    return _publish(record, planner, space, out, dashboard)


def _rounds(
    record: SearchRecord, planner: TrialPlanner, space: Space, out: Path, dashboard: Dashboard
) -> Iterator[None]:
    """Yield before each round to train. The record on disk always describes the next round."""
    while True:
        fill(record, planner, space)
        record.write(out)
        forget_rounds(record, out)
        if not (running := record.running()):
            return
        new = sum(trial.step == 0 for trial in running)
        best = record.best(record.first_seeds)
        score = f", best {record.metric} {best[0].scores[-1]:.4g} ({best[0].name})" if best else ""
        dashboard.note(f"round {len(record.rounds) + 1}: {len(running)} trials, {new} new{score}")
        yield


def _publish(
    record: SearchRecord, planner: TrialPlanner, space: Space, out: Path, dashboard: Dashboard
) -> SearchResult:
    """Copy the winner's run, write the reports, and delete the states of trials that were never promoted."""
    for trial in record.trials:
        if trial.state == "paused":
            trial.reason = planner.ladder.reason(record, trial)
    source = out / TRIALS / str(record.winner)
    write_run_report(Run(source), dashboard)
    staged = staging_name(out / WINNER)
    shutil.copytree(source, staged)
    sync_tree(staged)
    replace_folder(staged, out / WINNER)
    _write_reports(record, space, out)
    record.write(out)
    for folder in (out / TRIALS / GROUPS_FOLDER, *(working_folder(out / TRIALS / t.name) for t in record.trials)):
        shutil.rmtree(folder, ignore_errors=True)
    return SearchResult(out, Run(out / WINNER), record)


def _write_reports(record: SearchRecord, space: Space, out: Path) -> None:
    write_text(out / SEARCH_PAGE, render(record, importances(space, record)))
    export_study(space, record, out / STUDY)

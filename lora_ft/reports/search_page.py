"""The page of a search: finalists, learning curves, importance of keys, score against size, and every trial's end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lora_ft.reports.html import document, escape, section, table
from lora_ft.reports.svg import STYLE, Axis, Plot, Point, Series, figures
from lora_ft.reports.table import NONE, Cell, Table
from lora_ft.runs.search_record import SearchRecord, Trial

_STYLES = {"winner": 0, "finished": 1, "stopped": 2, "failed": 3, "running": 4}  # by outcome


def render(record: SearchRecord, importances: Mapping[str, float]) -> str:
    """Return the page.

    Args:
        record: Record of a finished or unfinished search.
        importances: Share of each key, from the largest to the smallest; may be empty.
    """
    name = str(record.task["name"])
    stopped = sum(trial.state == "paused" for trial in record.trials)
    facts = (
        f"{len(record.first_seeds):,} trials, of which {stopped:,} were stopped · {record.runs_tried:,} runs tried · "
        f"{record.steps:,} steps · {record.seconds:,.0f} s · ranked by validation {record.metric}"
    )
    title = f"Search: {name}"
    winner = f"winner {record.winner}" if record.winner else "unfinished"
    header = [f"<h1>{escape(title)}</h1>", f'<p class="facts">{escape(winner)} · {escape(facts)}</p>']
    body = []
    if record.finalists:
        body.append(section("Finalists", [table(_finalists(record))]))
    charts = [plot for plot in (_curves(record), _pareto(record)) if any(series.points for series in plot.series)]
    body.append(section("Trials", [*figures(charts), table(_trials(record))]))
    if importances:
        body.append(section("Importance of keys", [table(_importances(importances))]))
    if record.rounds:
        body.append(section("Rounds", [table(_rounds(record))]))
    return document(title, header, body, STYLE)


def pareto_front(trials: Sequence[Trial], sign: int) -> list[Trial]:
    """Return the trials that no other trial beats in both score and size, from the smallest to the largest.

    Args:
        trials: Trials with scores.
        sign: 1 if a larger score is better, else -1.
    """
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.parameters, -sign * trial.scores[-1], trial.number)):
        if not front or sign * trial.scores[-1] > sign * front[-1].scores[-1]:
            front.append(trial)
    return front


def _value(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 32 else text[:31] + "…"


def _outcome(trial: Trial, record: SearchRecord) -> str:
    if trial.name == record.winner:
        return "winner"
    return "stopped" if trial.state == "paused" else trial.state


def _finalists(record: SearchRecord) -> Table:
    by_number = {trial.number: trial for trial in record.trials}
    rows = []
    for finalist in record.finalists:
        difference = NONE
        if finalist.difference is not None:
            mean, low, high = finalist.difference
            difference = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
        won = record.winner in finalist.runs
        rows.append(
            [
                Cell(by_number[finalist.trial].name, best=won),
                *(Cell(_value(by_number[finalist.trial].settings[key])) for key in record.space),
                Cell(f"{finalist.parameters:,}"),
                Cell(f"{len(finalist.runs)}"),
                Cell(f"{finalist.score:.1f}", best=won),
                Cell(difference),
                Cell(NONE if finalist.p is None else f"{finalist.p:.3f}"),
            ]
        )
    columns = ("trial", *record.space, "parameters", "seeds", record.test_metric, "difference", "p")
    note = (
        "Scores of answers to the validation rows, mean over the seeds. Differences from the first row are paired by "
        "row, with 95 % intervals; p is corrected for the number of tests (Holm). The smallest adapter with p of at "
        "least 0.05 wins. The winner was selected on these rows, so quote scores on test rows instead."
    )
    return Table("Finalists", columns, rows, note=note).filled()


def _curves(record: SearchRecord) -> Plot:
    """Return the learning curves of all trials. One curve of each outcome has its name in the legend."""
    series = []
    named = set()
    for trial in sorted(record.trials, key=lambda trial: trial.name != record.winner):
        outcome = _outcome(trial, record)
        points = [
            Point(
                step,
                score,
                hint=f"{trial.name}, step {step:,}: {score:.4g} ({outcome})",
                ring=outcome == "stopped" and step == trial.curve[-1][0],
            )
            for step, score in trial.curve
        ]
        if points:
            series.append(Series("" if outcome in named else outcome, points, _STYLES[outcome]))
            named.add(outcome)
    note = "One curve for each trial and repetition. A ring marks where a trial was stopped."
    return Plot(f"Validation {record.metric}", Axis("step"), Axis(record.metric), series, note=note)


def _pareto(record: SearchRecord) -> Plot:
    """Return score against adapter size of the trials that finished, with their Pareto front."""
    finished = [trial for trial in record.first_seeds if trial.state == "finished"]
    front = pareto_front(finished, record.sign)

    def points(trials: Sequence[Trial], label: bool) -> list[Point]:
        return [
            Point(
                trial.parameters,
                trial.scores[-1],
                hint=f"{trial.name}: {trial.parameters:,} parameters, {record.metric} {trial.scores[-1]:.4g}",
                label=trial.name if label else "",
            )
            for trial in trials
        ]

    behind = [trial for trial in finished if trial not in front]
    series = [
        Series("Pareto front", points(front, True), 0),
        Series("other finished trials", points(behind, False), 1, line=False),
    ]
    note = "No finished trial is both smaller and better than one of the front."
    return Plot("Score and size", Axis("trained parameters", log=True), Axis(record.metric), series, note=note)


def _trials(record: SearchRecord) -> Table:
    rungs = max((len(trial.scores) for trial in record.trials), default=0)
    rows = []
    order = {trial.number: at for at, trial in enumerate(record.best(record.trials))}
    progress = sorted(
        record.trials, key=lambda t: (-t.step / max(t.steps, 1), order.get(t.number, len(order)), t.number)
    )
    for trial in progress:
        outcome = _outcome(trial, record)
        scores = [f"{score:.4g}" for score in trial.scores]
        if trial.repeats is not None:
            scores = [*[NONE] * (rungs - len(scores)), *scores]  # it did not pause at the rungs
        rows.append(
            [
                Cell(trial.name, best=outcome == "winner"),
                *(Cell(_value(trial.settings[key])) for key in record.space),
                Cell(f"{trial.parameters:,}"),
                Cell(f"{trial.step:,}/{trial.steps:,}"),
                *(Cell(score) for score in [*scores, *[NONE] * (rungs - len(scores))]),
                Cell(outcome),
                Cell(f"{trial.left}" if trial.left else NONE),
                Cell(trial.reason or NONE),
            ]
        )
    ends = [f"rung {rung + 1}" for rung in range(rungs)]
    columns = ("trial", *record.space, "parameters", "steps", *ends, "outcome", "round", "reason")
    note = f"Rungs show the best validation {record.metric} on arrival. A trial left the group after its round."
    return Table("All trials", columns, rows, note=note).filled()


def _importances(importances: Mapping[str, float]) -> Table:
    rows = [[Cell(key), Cell(f"{share:.0%}")] for key, share in importances.items()]
    note = "Share of the differences at the first rung that a key explains (optuna, PED-ANOVA)."
    return Table("Importance", ("key", "importance"), rows, note=note).filled()


def _rounds(record: SearchRecord) -> Table:
    rows = [
        [Cell(f"{number}"), Cell(f"{len(entry.trials)}"), Cell(f"{entry.steps:,}"), Cell(f"{entry.seconds:,.1f}")]
        for number, entry in enumerate(record.rounds, 1)
    ]
    note = f"Trials of the group, of at most {record.settings.group_size}, and optimizer steps of all of them."
    return Table("Rounds", ("round", "trials", "steps", "time, s"), rows, note=note).filled()

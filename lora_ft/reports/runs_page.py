"""Several runs as one HTML page: settings that differ, validation curves in one chart, scores side by side.

`train` writes it for a grid or for several tasks, into the folder of the runs. `train` and `evaluate` update it there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_ft.reports.curves import comparison_plot, read_log
from lora_ft.reports.html import aside, document, escape, section, table
from lora_ft.reports.markdown import interval
from lora_ft.reports.svg import LIGHT, STYLE, figures
from lora_ft.reports.table import NONE, Cell, Table
from lora_ft.runs.grid_results import best_run
from lora_ft.runs.records import score_values
from lora_ft.runs.run import LOG, Run

TITLE = "Runs compared"
_SECTIONS = ("base", "method", "codec", "lora", "train", "lengths")  # sections of a task that a grid may vary
_MAX_SETTINGS, _MAX_SETTING = 8, 32  # columns, and characters of a value
_MAX_CURVES = len(LIGHT)  # with more curves, colors would repeat


def render(runs: Sequence[Run], unreadable: Mapping[str, str]) -> str:
    """Return the page of several runs.

    Args:
        runs: Runs to compare.
        unreadable: Reason by folder name for each run that could not be read.
    """
    best = best_run(runs)
    ordered = sorted(runs, key=_rank)
    header = [
        f"<h1>{TITLE}</h1>",
        f'<p class="facts">{len(runs):,} runs{f" · best {escape(best.task.name)}" if best else ""}</p>',
        *aside([f"{name} was left out: {reason}" for name, reason in unreadable.items()]),
    ]
    body = [section("Training", [table(_training(ordered, best)), *_charts(ordered)])]
    for split in sorted({split for run in ordered for split in run.scores}):
        evaluated = [run for run in ordered if split in run.scores]
        body.append(section(f"Scores on {split} rows", [table(_scores(evaluated, split))]))
    return document(TITLE, header, body, STYLE)


def differing_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the task keys whose values differ between runs, with the value of each run."""
    tasks = [_flat(run.task.model_dump(mode="json", include=set(_SECTIONS))) for run in runs]
    values = {key: [str(task.get(key, NONE)) for task in tasks] for key in dict.fromkeys(k for t in tasks for k in t)}
    short = {key: row for key, row in values.items() if max(map(len, row)) <= _MAX_SETTING}
    return {key: row for key, row in short.items() if len(set(row)) > 1}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested keys joined by dots. Lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}{key}.") if isinstance(entry, dict) and entry else {prefix + key: entry}
    return flat


def _rank(run: Run) -> tuple[bool, str, float, str]:
    """Return a sort key by metric, then from the best score to the worst. Runs without a score come last."""
    metric, score = run.task.train.metric_for_best_model, run.metrics["best_metric"]
    sign = 1 if metric == "loss" else -1
    return score is None, metric, 0.0 if score is None else sign * score, run.task.name


def _training(runs: Sequence[Run], best: Run | None) -> Table:
    settings = dict(list(differing_settings(runs).items())[:_MAX_SETTINGS])
    columns = ("run", *settings, "metric", "validation", "best step", "steps", "training loss", "rows/s", "time, s")
    rows = []
    for at, run in enumerate(runs):
        metrics = run.metrics
        score, speed = metrics["best_metric"], metrics["speed"]
        rows.append(
            [
                Cell(run.task.name, best=run is best),
                *(Cell(values[at]) for values in settings.values()),
                Cell(run.task.train.metric_for_best_model if score is not None else NONE),
                Cell(NONE if score is None else f"{score:.4g}", best=run is best),
                Cell(f"{metrics['best_step']:,}" if metrics["best_step"] else NONE),
                Cell(f"{metrics['steps']:,}"),
                Cell(f"{metrics['train_loss']:.3f}"),
                Cell(f"{speed['samples_per_second']:,.1f}" if speed["samples_per_second"] else NONE),
                Cell(f"{speed['seconds']:,.0f}"),
            ]
        )
    note = "The best validation score is highlighted. It selected the best run, so quote scores on test rows instead."
    return Table("Runs", columns, rows, note=note if best else "").filled()


def _charts(runs: Sequence[Run]) -> list[str]:
    """Return charts of the best runs: one for each metric that chose checkpoints, and one for its loss."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.task.train.metric_for_best_model, []).append(run)
    plots = []
    for metric, group in groups.items():
        logs = {run.task.name: read_log(run.folder / LOG) for run in group[:_MAX_CURVES]}
        plots += [comparison_plot(logs, name) for name in dict.fromkeys((metric, "loss"))]
    return figures([plot for plot in plots if any(series.points for series in plot.series)])


def _scores(runs: Sequence[Run], split: str) -> Table:
    rows = []
    for run in runs:
        entry = run.scores[split]
        values = score_values(entry["scores"])
        metric = run.task.evaluate.metric if run.task.evaluate.metric in values else next(iter(values))
        base, gain = score_values(entry["baseline"] or {}), entry["difference"] or {}
        rows.append(
            [
                Cell(run.task.name),
                Cell(metric),
                Cell(interval(values[metric])),
                Cell(interval(base[metric]) if metric in base else NONE),
                Cell(interval(gain[metric], sign="+") if metric in gain else NONE),
                Cell(f"{entry['rows']:,}"),
            ]
        )
    columns = ("run", "metric", "score", "base", "difference", "rows")
    return Table("Scores", columns, rows, 2, "Means with 95 % bootstrap intervals, 0 to 100.").filled()

"""The curves of a training: its log (log.jsonl) as charts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ft.reports.svg import Axis, Plot, Point, Series

_PREFIX = "eval_"
_NOT_SCORES = {"eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
_MAX_POINTS = 300  # a curve is about 400 pixels wide


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a training log, or none if there is no log."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def curve(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return steps and values of one logged number. Long curves are thinned to means of neighboring values."""
    values = [(int(entry["step"]), float(entry[key])) for entry in log if isinstance(entry.get(key), int | float)]
    size = -(-len(values) // _MAX_POINTS) or 1
    blocks = [values[start : start + size] for start in range(0, len(values), size)]
    return [(block[-1][0], sum(value for _, value in block) / len(block)) for block in blocks]


def training_plots(log: Sequence[Mapping[str, Any]], best_step: int | None) -> list[Plot]:
    """Return charts of loss, validation scores and learning rate. Charts without any points are left out.

    Args:
        log: Entries of log.jsonl.
        best_step: Step of the best checkpoint, whose points have a ring; None if there is no best checkpoint.
    """
    scores = sorted({key for entry in log for key in entry if key.startswith(_PREFIX)} - _NOT_SCORES)
    ring = "The ring marks the best step, whose weights the run holds." if best_step is not None else ""
    loss = [_line("training", curve(log, "loss"), 0), _marked("validation", curve(log, "eval_loss"), 1, best_step)]
    validation = [
        _marked(key.removeprefix(_PREFIX), curve(log, key), style, best_step) for style, key in enumerate(scores)
    ]
    rate = [_line("learning rate", curve(log, "learning_rate"), 0)]
    plots = [
        Plot("Loss", Axis("step"), Axis("loss per token"), loss, note=ring),
        Plot("Validation scores", Axis("step"), Axis("score, 0-100"), validation, note=ring),
        Plot("Learning rate", Axis("step"), Axis("learning rate"), rate),
    ]
    return [plot for plot in plots if any(series.points for series in plot.series)]


def comparison_plot(logs: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> Plot:
    """Return the validation curves of several runs in one chart.

    Args:
        logs: Entries of log.jsonl by name of the run.
        metric: Name of the score, or "loss".
    """
    series = [
        _marked(name, curve(log, _PREFIX + metric), style, None) for style, (name, log) in enumerate(logs.items())
    ]
    return Plot(f"Validation {metric}", Axis("step"), Axis(metric), series)


def _line(name: str, values: Sequence[tuple[int, float]], style: int) -> Series:
    bare = len(values) > 1  # a single value has no line, so it needs a marker
    return Series(name, [Point(step, value, bare=bare) for step, value in values], style)


def _marked(name: str, values: Sequence[tuple[int, float]], style: int, best_step: int | None) -> Series:
    return Series(
        name,
        [
            Point(step, value, hint=f"{name}, step {step:,}: {value:.4g}", ring=step == best_step)
            for step, value in values
        ],
        style,
    )

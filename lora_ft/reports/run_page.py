"""A run as one HTML page: curves, lengths, scores of run and base, answers, plan and environment.

`train` and `evaluate` write it into the run's folder as report.html. It is rendered from the run's files alone, so it
can be written again at any time. It contains prompts and answers, and is therefore not uploaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.shell_command import shell_command
from lora_ft.data.words import UnicodeTokenizer
from lora_ft.evaluation.slices import slices
from lora_ft.reports import answers
from lora_ft.reports.answers import answer_row, marked
from lora_ft.reports.curves import read_log, training_plots
from lora_ft.reports.html import aside, document, escape, prose, section, table
from lora_ft.reports.markdown import interval
from lora_ft.reports.svg import STYLE, Axis, Plot, Point, Series, figures
from lora_ft.reports.table import NONE, Cell, Table
from lora_ft.reports.unsupported import unsupported_tables
from lora_ft.runs.records import score_values
from lora_ft.runs.run import LOG, PREDICTIONS, Run
from lora_ft.tasks.evaluate import Evaluate

TITLE = "Run report"
_SHOWN_ROWS = 3  # of each kind: best, worst, most changed
_MAX_PROMPT = 4000  # characters
_PERCENTILES = (50, 90, 95, 100)
_Answer = Mapping[str, Any]


def render(run: Run) -> str:
    """Return the page of a run."""
    metrics, scores = run.metrics, run.scores
    predictions = {split: read_predictions(run.folder / PREDICTIONS.format(split)) for split in scores}
    warnings = [f"{split}: {warning}" for split, entry in scores.items() for warning in entry["warnings"]]
    header = [
        f"<h1>{escape(run.task.name)}</h1>",
        f'<p class="facts">{escape(" · ".join(_facts(run)))}</p>',
        *([f"<p>{escape(metrics['base']['notice'])}</p>"] if metrics["base"]["notice"] else []),
        *aside(warnings),
    ]
    body = [section("Training", [*_charts(run), *map(table, _training_tables(run))])]
    for split, entry in scores.items():
        body.append(section(f"Scores on {split} rows", list(map(table, _score_tables(split, entry)))))
        if rows := predictions[split]:
            body.append(section(f"Lengths of {split} rows", _lengths(rows)))
            if beyond := unsupported_tables(rows):
                shown = [table(each) if each.rows else f'<p class="note">{escape(each.note)}</p>' for each in beyond]
                body.append(section(f"What {split} answers say beyond their sources", shown))
            body.append(section(f"Where {split} rows score high and low", _slices(rows, run.task.evaluate, entry)))
            body.append(section(f"Answers to {split} rows", _answers(rows, run.task.evaluate.metric, entry)))
    if not scores:
        command = f"<code>{escape(shell_command('evaluate', run.folder))}</code>"
        body.append(section("Scores", [f"<p>There are no scores yet. Run {command}.</p>"]))
    body.append(section("Plan", [table(_pairs("Plan", _plan(run)))]))
    body.append(section("Environment", [table(_pairs("Environment", _environment(metrics)))]))
    return document(f"{TITLE}: {run.task.name}", header, body, answers.STYLE + STYLE)


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a predictions file that `evaluate` wrote, or no rows if the file does not exist."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _facts(run: Run) -> list[str]:
    metrics = run.metrics
    best = metrics["best_metric"]
    return [
        f"base {metrics['base'].get('name', run.task.base)}",
        f"{metrics['rows']['train']:,} training rows",
        f"{metrics['steps']:,} steps",
        f"{metrics['speed']['seconds']:,.0f} s",
        *([f"best validation {run.task.train.metric_for_best_model} {best:.3f}"] if best is not None else []),
    ]


def _charts(run: Run) -> list[str]:
    return figures(training_plots(read_log(run.folder / LOG), run.metrics["best_step"]))


def _training_tables(run: Run) -> list[Table]:
    """Return the table of lengths of the training rows, or nothing if the run did not record them."""
    lengths: Mapping[str, Sequence[int]] = run.metrics.get("lengths") or {}
    limits = {"prompts": run.task.lengths.source, "targets": run.task.lengths.target}
    rows = [
        [Cell(side), *(Cell(f"{tokens:,}") for tokens in values), Cell(f"{limits.get(side, 0):,}")]
        for side, values in lengths.items()
    ]
    columns = ("training rows", *(f"{share} %" for share in _PERCENTILES), "limit")
    return [Table("Lengths in tokens", columns, rows, note="Longer prompts are cut at the limit.")] if rows else []


def _score_tables(split: str, entry: Mapping[str, Any]) -> list[Table]:
    model, base, gain = entry["scores"], entry["baseline"], entry["difference"]
    values, before = score_values(model), score_values(base) if base else {}
    rows = [
        [
            Cell(name),
            Cell(interval(value), hint=(entry.get("how") or {}).get(name, "")),
            Cell(interval(before[name]) if name in before else NONE),
            Cell(interval(gain[name], sign="+") if gain and name in gain else NONE),
        ]
        for name, value in values.items()
    ]
    note = f"{entry['rows']:,} {split} rows. Means with 95 % bootstrap intervals, 0 to 100. "
    note += "" if base else "Add the base's scores with `lora-ft evaluate RUN --baseline`."
    tables = [Table("Scores", ("score", "run", "base", "difference"), rows, note=note.strip()).filled()]
    if labels := model.get("labels"):
        columns = ("label", "F1", "precision", "recall", "rows", "answers")
        cells = [
            [
                Cell(label),
                *(Cell(f"{score[key]:.1f}") for key in ("f1", "precision", "recall")),
                *(Cell(f"{score[key]:,}") for key in ("rows", "answers")),
            ]
            for label, score in labels.items()
        ]
        tables.append(Table("Labels", columns, cells))
    return tables


def _lengths(rows: Sequence[_Answer]) -> list[str]:
    words = UnicodeTokenizer().tokenize
    lengths = {
        "prompts, words": [len(words(row["prompt"])) for row in rows],
        "references, words": [len(words(text)) for row in rows for text in row["references"]],
        "answers, words": [len(words(row["output"])) for row in rows],
        "answers, tokens": [row["tokens"] for row in rows],
    }
    cells = [
        [Cell(name), *(Cell(f"{value:,.0f}") for value in np.percentile(values, _PERCENTILES, method="nearest"))]
        for name, values in lengths.items()
    ]
    cut = sum(bool(row["cut"]) for row in rows), sum(bool(row["source_cut"]) for row in rows)
    note = f"{cut[0]:,} of {len(rows):,} answers ended at the length limit; {cut[1]:,} prompts were cut."
    compared = [name for name in lengths if name.endswith("words") and not name.startswith("prompts")]
    series = [Series(name, _distribution(lengths[name]), style) for style, name in enumerate(compared)]
    plot = Plot("Lengths", Axis("words"), Axis("texts up to that length, %", include=(0.0, 100.0)), series)
    columns = ("texts", *(f"{share} %" for share in _PERCENTILES))
    return [table(Table("Length percentiles", columns, cells, note=note)), *figures([plot])]


def _distribution(lengths: Sequence[int]) -> list[Point]:
    """Return the share of texts that are at most x words long, at each length that occurs."""
    values, counts = np.unique(lengths, return_counts=True)
    shares = 100 * np.cumsum(counts) / len(lengths)
    return [Point(float(x), float(y), bare=len(values) > 1) for x, y in zip(values, shares, strict=True)]


def _by(metric: str, entry: Mapping[str, Any]) -> str:
    """Return the score that rows are ordered and sliced by."""
    names = list(score_values(entry["scores"]))
    return metric if metric in names else names[0]


def _slices(rows: Sequence[_Answer], settings: Evaluate, entry: Mapping[str, Any]) -> list[str]:
    by = _by(settings.metric, entry)
    parts = slices(rows, by, seed=settings.seed, resamples=settings.bootstrap)
    if not parts:
        return ['<p class="note">There are too few rows to compare kinds of rows.</p>']
    properties = ["" if i and parts[i - 1].by == part.by else part.by for i, part in enumerate(parts)]
    cells = [
        [Cell(shown), Cell(part.value), Cell(f"{part.rows:,}"), Cell(str(part.score), best=part.differs)]
        for shown, part in zip(properties, parts, strict=True)
    ]
    note = (
        f"Mean {by} of rows with 95 % intervals. Intervals that exclude the mean of all rows are emphasized; one in 20 "
        "does by chance."
    )
    return [table(Table("Slices", ("rows by", "value", "rows", by), cells, 2, note))]


def _answers(rows: Sequence[_Answer], metric: str, entry: Mapping[str, Any]) -> list[str]:
    """Return the best, worst and most changed answers by the metric of the task."""
    by = _by(metric, entry)
    scored = [at for at in range(len(rows)) if rows[at].get(by) is not None]
    ordered = sorted(scored, key=lambda at: -rows[at][by])
    count = min(_SHOWN_ROWS, len(ordered))
    worst = [at for at in reversed(ordered) if at not in ordered[:count]][:count]
    parts = [
        *_kind(f"Best {by}", ordered[:count], rows, by),
        *_kind(f"Worst {by}", worst, rows, by),
    ]
    changed = [at for at in scored if rows[at].get("baseline", {}).get(by) is not None]
    if not any("baseline" in row for row in rows):
        advice = prose("To see what training changed, add --baseline to `lora-ft evaluate`.")
        return [*parts, f'<p class="note">{advice}</p>']
    changed.sort(key=lambda at: -abs(_change(rows[at], by)))
    legend = "Words only in the base are <del>struck out</del>, words only in the run are <ins>underlined</ins>."
    return [*parts, *_kind(f"Most changed {by}", changed[:count], rows, by, legend)]


def _change(row: _Answer, by: str) -> float:
    return float(row[by] - row["baseline"][by])


def _kind(title: str, indices: Sequence[int], rows: Sequence[_Answer], by: str, legend: str = "") -> list[str]:
    if not indices:
        return []
    heading = f"<p><strong>{escape(title)}</strong>{'. ' + legend if legend else ''}</p>"
    return [heading, *(_row(rows[at], at, by) for at in indices)]


def _row(row: _Answer, at: int, by: str) -> str:
    score = f"{by} {row[by]:.1f}"
    prompt = row["prompt"] if len(row["prompt"]) <= _MAX_PROMPT else row["prompt"][:_MAX_PROMPT] + " …"
    if row.get("baseline", {}).get(by) is None:
        return answer_row(at + 1, [], [(f"run · {score}", escape(row["output"]))], row["references"], prompt)
    before = row["baseline"]
    old, new = marked(before["output"], row["output"])
    captions = (f"base · {by} {before[by]:.1f}", f"run · {score}")
    texts = list(zip(captions, (old, new), strict=True))
    return answer_row(at + 1, [f"{_change(row, by):+.1f}"], texts, row["references"], prompt)


def _plan(run: Run) -> dict[str, str]:
    task, metrics, train, lora = run.task, run.metrics, run.task.train, run.task.lora
    method = f"LoRA, rank {lora.r}, alpha {lora.lora_alpha}, dropout {lora.lora_dropout:g}"
    speed = metrics["speed"]
    padding = speed["padding_share"]
    return {
        "prompt": task.prompt,
        "method": method if task.method == "lora" else "full fine-tuning",
        "trained parameters": f"{metrics['trainable_parameters']:,}",
        "rows": f"{metrics['rows']['train']:,} training, {metrics['rows']['validation']:,} validation",
        "steps": f"{metrics['steps']:,} of {metrics['global_batch']} rows",
        "learning rate": f"{train.learning_rate:g}, {train.lr_scheduler_type}, {train.optim}",
        "seed": str(train.seed),
        "padding": f"{padding:.0%} of the positions" if padding is not None else NONE,
        "compute": metrics["precision"] + (", compiled" if metrics["compiled"] else ""),
    }


def _environment(metrics: Mapping[str, Any]) -> dict[str, str]:
    speed, energy = metrics["speed"], metrics.get("energy")
    rate = speed["samples_per_second"]
    return {
        "hardware": metrics.get("hardware") or "not recorded",
        "time": f"{speed['seconds']:,.0f} s" + (f", {rate:.1f} rows/s" if rate else ""),
        "energy": f"{energy['joules'] / 3.6e6:.3g} kWh ({energy['source']})" if energy else "not measured",
        **metrics["versions"],
    }


def _pairs(title: str, pairs: Mapping[str, str]) -> Table:
    return Table(title, ("", ""), [[Cell(name), Cell(value)] for name, value in pairs.items()], words=2)

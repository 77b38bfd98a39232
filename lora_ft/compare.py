"""The verb `compare`: score several models' answers to the same rows against each other, without generating."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.readers import Row, read_rows
from lora_ft.evaluation.comparison import Comparison, Contender
from lora_ft.evaluation.metrics import Scored, measure
from lora_ft.evaluation.metrics.statistics import compare as test
from lora_ft.runs.records import read_scores
from lora_ft.runs.run import PREDICTIONS, SCORES, TASK, is_run
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Evaluate, SplitName


def compare(
    models: Sequence[str | os.PathLike[str]],
    *,
    split: SplitName = "test",
    metrics: Sequence[str] = (),
    task: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Score answers of models, and test the differences from the first model.

    Args:
        models: At least two evaluated runs, or files that `lora-ft evaluate --predictions` wrote.
        split: Split of the runs.
        metrics: Metrics to use instead of the task's.
        task: Task file with the settings. Default: the task of the first run.

    Raises:
        UsageError: Answers are missing, or belong to different rows.
    """
    names = [os.fspath(model) for model in models]
    if len(names) < 2:
        raise UsageError("there is nothing to compare", "name two runs, or files of answers, or more")
    files = [_file(name, split) for name in names]
    given = [_read(file) for file in files]
    for name, rows in zip(names[1:], given[1:], strict=True):
        _require_same(names[0], given[0], name, rows)
    settings, measured = _settings(names, None if task is None else os.fspath(task), metrics)
    references = [list(row["references"]) for row in given[0]]
    answers = [[row["output"] for row in rows] for rows in given]
    scored = [measure(measured, texts, references, settings) for texts in answers]
    contenders = [
        _contender(name, texts, found, scored[0] if at else None, settings)
        for at, (name, texts, found) in enumerate(zip(names, answers, scored, strict=True))
    ]
    by = settings.metric if settings.metric in scored[0] else next(iter(scored[0]))
    most = np.max([np.abs(one[by].rows - scored[0][by].rows) for one in scored[1:]], axis=0)
    return Comparison(
        contenders,
        [row["prompt"] for row in given[0]],
        references,
        {how: [name for name, one in scored[0].items() if one.how == how] for how in _ways(scored[0])},
        by,
        [int(row) for row in np.argsort(-most, kind="stable")],
        [warning for name in names for warning in _other_signatures(name, split, scored[0])],
    )


def _other_signatures(name: str, split: str, scored: dict[str, Scored]) -> list[str]:
    """Return a warning where a run's own scores rest on other words, sentences or settings than those of here.

    All contenders are scored here in one way, so that what is compared is the same; but the figures that the run was
    published with are not these.
    """
    path = Path(name) / SCORES.format(split)
    if not path.is_file():
        return []
    recorded = read_scores(path)
    own, values = recorded.get("how", {}), recorded["scores"].get("scores") or recorded["scores"].get("rouge") or {}
    found: dict[str, list[str]] = {}
    for score, one in scored.items():
        if score in values and own.get(score, "") != one.how:
            found.setdefault(own.get(score) or "no signature", []).append(score)
    return [
        f"{name} was evaluated with other scores of this name ({', '.join(scores)}: {how}); all are scored again here, "
        f"`lora-ft evaluate {name} --split {split}` brings its own up to date"
        for how, scores in found.items()
    ]


def _ways(scored: dict[str, Scored]) -> list[str]:
    return list(dict.fromkeys(one.how for one in scored.values() if one.how))


def _contender(
    name: str, answers: list[str], found: dict[str, Scored], first: dict[str, Scored] | None, settings: Evaluate
) -> Contender:
    seeds = {"seed": settings.seed, "resamples": settings.bootstrap}
    return Contender(
        name,
        answers,
        {score: one.estimate(**seeds) for score, one in found.items()},
        {score: one.rows for score, one in found.items()},
        {} if first is None else {score: test(one, first[score], **seeds) for score, one in found.items()},
    )


def _file(name: str, split: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    if not is_run(path):
        raise UsageError(
            f"{name} is neither a run nor a file of answers",
            "a checkpoint, bundle or base answers with `lora-ft evaluate MODEL --task TASK --predictions FILE`, and an "
            "adapter of a bank with --adapter NAME",
        )
    file = path / PREDICTIONS.format(split)
    if not file.is_file():
        raise UsageError(f"{name} has not answered its {split} rows", f"lora-ft evaluate {name} --split {split}")
    return file


def _read(file: Path) -> list[Row]:
    found = read_rows(Path(), str(file), "answers")
    for where, row in found:
        texts = row.get("references")
        if not (
            isinstance(row.get("output"), str)
            and isinstance(row.get("prompt"), str)
            and isinstance(texts, list)
            and texts
            and all(isinstance(text, str) for text in texts)
        ):
            raise LoraFtError(f"{where} is no answer with prompt, output and references", "evaluate the model again")
    if not found:
        raise LoraFtError(f"{file} holds no answers", "evaluate the model again")
    return [row for _, row in found]


def _require_same(name: str, rows: Sequence[Row], other: str, theirs: Sequence[Row]) -> None:
    """Raise UsageError unless rows and their order agree. Prompts may differ if both files identify their rows."""
    for at, (row, their) in enumerate(zip(rows, theirs, strict=False)):
        which = "row" if "row" in row and "row" in their else "prompt"
        for key in (which, "references"):
            if row[key] != their[key]:
                raise UsageError(
                    f"{name} and {other} answered different rows: row {at + 1} has another {key}, "
                    f"'{_start(row)}' and '{_start(their)}'",
                    "evaluate both on the same task and split",
                )
    if len(rows) != len(theirs):
        raise UsageError(
            f"{name} and {other} answered different rows: {len(rows):,} and {len(theirs):,} of them; row "
            f"{min(len(rows), len(theirs)) + 1} is in one only",
            "evaluate both with the same --limit",
        )


def _start(row: Row) -> str:
    return " ".join(row["prompt"].split())[:40]


def _settings(names: Sequence[str], task: str | None, metrics: Sequence[str]) -> tuple[Evaluate, list[str]]:
    """Return settings and metrics to score answers with."""
    file = task or next((str(Path(name) / TASK) for name in names if is_run(Path(name))), None)
    if file is None:
        settings = Evaluate(metrics=list(metrics or ("rouge",)))
        return settings, settings.metrics
    loaded = load_task(file, [f"evaluate.metrics=[{', '.join(metrics)}]"] if metrics else [])
    return loaded.evaluate, loaded.evaluate.metrics if metrics else loaded.metrics

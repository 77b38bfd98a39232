"""The verb `compare`: score several models' answers to the same rows against each other, without generating."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.shell_command import shell_command
from lora_ft.data.readers import Row, read_rows
from lora_ft.evaluation.comparison import Comparison, Contender
from lora_ft.evaluation.metrics import Scored, measure
from lora_ft.evaluation.metrics.statistics import compare as tested
from lora_ft.evaluation.metrics.statistics import holm
from lora_ft.runs.records import read_scores
from lora_ft.runs.run import PREDICTIONS, SCORES, TASK, is_run
from lora_ft.tasks.evaluate import Evaluate
from lora_ft.tasks.files import load_task
from lora_ft.tasks.metric_names import FROM_SOURCE, SCORES_OF
from lora_ft.tasks.schema import SplitName


def compare(
    models: Sequence[str | os.PathLike[str]],
    *,
    split: SplitName | None = None,
    metrics: Sequence[str] = (),
    task: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Score answers of models, and test how they differ from the first model.

    Args:
        models: At least two evaluated runs, or files that `lora-ft evaluate --predictions` wrote.
        split: Split of the runs. Default: test, or validation if only its answers exist in every run.
        metrics: Metrics to use instead of the task's.
        task: Task file with the settings. Default: the task of the first run.

    Raises:
        UsageError: Answers are missing, or belong to different rows.
    """
    names = [os.fspath(model) for model in models]
    if len(names) < 2:
        raise UsageError(
            f"a comparison needs two models (got {len(names)})", "name two or more runs or files of answers"
        )
    runs = [Path(name) for name in names if is_run(Path(name))]
    split = split or _default_split(runs)
    files = [_file(name, split) for name in names]
    tables = [_read(file) for file in files]
    for name, rows in zip(names[1:], tables[1:], strict=True):
        _require_same_rows(names[0], tables[0], name, rows)
    settings, measured = _settings(names, None if task is None else os.fspath(task), metrics)
    references = [list(row["references"]) for row in tables[0]]
    answers = [[row["output"] for row in rows] for rows in tables]
    computed = [name for name in measured if name not in FROM_SOURCE]
    recorded = _recorded([name for name in measured if name in FROM_SOURCE], names[0], split, tables)
    scored = [
        measure(computed, texts, references, settings) | scores for texts, scores in zip(answers, recorded, strict=True)
    ]
    if not scored[0]:
        raise UsageError(
            f"not every file has the scores of {', '.join(measured)}",
            "list them in evaluate.metrics, and evaluate again",
        )
    contenders = _corrected(
        _contender(name, texts, scores, scored[0] if i else None, settings)
        for i, (name, texts, scores) in enumerate(zip(names, answers, scored, strict=True))
    )
    by = settings.metric if settings.metric in scored[0] else next(iter(scored[0]))
    change = np.max([np.abs(scores[by].rows - scored[0][by].rows) for scores in scored[1:]], axis=0)
    return Comparison(
        contenders,
        [row["prompt"] for row in tables[0]],
        references,
        _names_by_signature(scored[0]),
        by,
        [int(row) for row in np.argsort(-change, kind="stable")],
        split if runs else None,
        [warning for name in names for warning in _signature_warnings(name, split, scored[0])],
    )


def _default_split(runs: Sequence[Path]) -> SplitName:
    splits: tuple[SplitName, ...] = ("test", "validation")
    return next((split for split in splits if all((run / PREDICTIONS.format(split)).is_file() for run in runs)), "test")


def _recorded(metrics: Sequence[str], first: str, split: str, tables: Sequence[list[Row]]) -> list[dict[str, Scored]]:
    """Return the scores of metrics that need sources, as `evaluate` wrote them, for each file.

    Scores that a row of a file lacks are left out.
    """
    path = Path(first) / SCORES.format(split)
    signatures = read_scores(path).get("how", {}) if path.is_file() else {}
    names = [
        name
        for metric in metrics
        for name in SCORES_OF[metric]
        if all(isinstance(row.get(name, ""), float | int | None) for rows in tables for row in rows)
    ]
    return [
        {
            name: Scored.mean(np.array([row[name] for row in rows], np.float64), signatures.get(name, ""))
            for name in names
        }
        for rows in tables
    ]


def _signature_warnings(name: str, split: str, scored: dict[str, Scored]) -> list[str]:
    """Return warnings if the recorded scores of a run were computed with other words, sentences or settings.

    A comparison scores all answers again with the same settings, so its figures may differ from the recorded ones. Only
    scores that need sources are those recorded.
    """
    path = Path(name) / SCORES.format(split)
    if not path.is_file():
        return []
    recorded = read_scores(path)
    signatures = recorded.get("how", {})
    values = recorded["scores"].get("scores") or recorded["scores"].get("rouge") or {}
    differing: dict[str, list[str]] = {}
    for name_of_score, score in scored.items():
        signature = signatures.get(name_of_score, "")
        if name_of_score in values and signature != score.how:
            differing.setdefault(signature or "no signature", []).append(name_of_score)
    return [
        f"the recorded scores of {name} were computed differently ({', '.join(names)}: {signature}). Update them with "
        f"`{shell_command('evaluate', name, '--split', split)}`"
        for signature, names in differing.items()
    ]


def _names_by_signature(scored: dict[str, Scored]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, score in scored.items():
        if score.how:
            names.setdefault(score.how, []).append(name)
    return names


def _contender(
    name: str, answers: list[str], scores: dict[str, Scored], first: dict[str, Scored] | None, settings: Evaluate
) -> Contender:
    seeds = {"seed": settings.seed, "resamples": settings.bootstrap}
    return Contender(
        name,
        answers,
        {score_name: score.estimate(**seeds) for score_name, score in scores.items()},
        {score_name: score.rows for score_name, score in scores.items()},
        {} if first is None else {key: tested(score, first[key], **seeds) for key, score in scores.items()},
    )


def _corrected(contenders: Iterable[Contender]) -> list[Contender]:
    """Return the models with p-values that are corrected for all tests of the comparison."""
    contenders = list(contenders)
    values = iter(holm([test.p for model in contenders for test in model.differences.values()]))
    return [
        replace(
            model,
            differences={name: replace(test, corrected=next(values)) for name, test in model.differences.items()},
        )
        for model in contenders
    ]


def _file(name: str, split: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    if not is_run(path):
        raise UsageError(
            f"{name} is neither a run nor a file of answers",
            "write the answers of another model with `lora-ft evaluate MODEL --task TASK --predictions FILE` (for an "
            "adapter of a bank, add --adapter NAME)",
        )
    file = path / PREDICTIONS.format(split)
    if not file.is_file():
        raise UsageError(
            f"{name} has no answers to its {split} rows", f"run {shell_command('evaluate', name, '--split', split)}"
        )
    return file


def _read(file: Path) -> list[Row]:
    rows = read_rows(Path(), str(file), "answers")
    for location, row in rows:
        texts = row.get("references")
        if not (
            isinstance(row.get("output"), str)
            and isinstance(row.get("prompt"), str)
            and isinstance(texts, list)
            and texts
            and all(isinstance(text, str) for text in texts)
        ):
            raise LoraFtError(
                f"{location} is not an answer (prompt, output and references)", "evaluate the model again"
            )
    if not rows:
        raise LoraFtError(f"{file} contains no answers", "evaluate the model again")
    return [row for _, row in rows]


def _require_same_rows(first: str, first_rows: Sequence[Row], name: str, rows: Sequence[Row]) -> None:
    """Raise UsageError unless rows and their order agree. Prompts may differ if both files identify their rows."""
    for i, (expected, row) in enumerate(zip(first_rows, rows, strict=False)):
        identity = "row" if "row" in expected and "row" in row else "prompt"
        for key in (identity, "references"):
            if expected[key] != row[key]:
                raise UsageError(
                    f"{first} and {name} answered different rows: `{key}` of row {i + 1} differs "
                    f"('{_start(expected)}' and '{_start(row)}')",
                    "evaluate both on the same task and split",
                )
    if len(first_rows) != len(rows):
        raise UsageError(
            f"{first} and {name} answered different numbers of rows ({len(first_rows):,} and {len(rows):,})",
            "evaluate both with the same --limit",
        )


def _start(row: Row) -> str:
    return " ".join(row["prompt"].split())[:40]


def _settings(names: Sequence[str], task: str | None, metrics: Sequence[str]) -> tuple[Evaluate, list[str]]:
    """Return the settings and the metrics of the comparison."""
    task_file = task or next((str(Path(name) / TASK) for name in names if is_run(Path(name))), None)
    if task_file is None:
        settings = Evaluate(metrics=list(metrics or ("rouge",)))
        return settings, settings.metrics
    loaded = load_task(task_file, [f"evaluate.metrics=[{', '.join(metrics)}]"] if metrics else [])
    return loaded.evaluate, loaded.evaluate.metrics if metrics else loaded.metrics

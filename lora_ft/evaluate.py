"""The verb `evaluate`: score a model on a split, with intervals, or each adapter of a bank on its own task."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_ft.core.constraint import SCHEMA
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import write_json, write_text
from lora_ft.core.output_paths import refuse_file, require_writable
from lora_ft.core.plain import plain_fields
from lora_ft.core.progress import Progress, Silent
from lora_ft.core.prompt import Prompt
from lora_ft.core.user_paths import expanded
from lora_ft.data.readers import Row
from lora_ft.data.splits import Example, load_splits, require, split_to_score, with_labels
from lora_ft.evaluation.metrics import Estimate, Scored, difference, measure
from lora_ft.evaluation.metrics import require as require_metrics
from lora_ft.evaluation.metrics.classification import LabelScore, by_label
from lora_ft.evaluation.slices import columns_to_slice
from lora_ft.evaluation.warnings import Overlap, answer_warnings, check_rows, ungraded_answers
from lora_ft.models.backends import BATCH_SIZE, Answer
from lora_ft.models.loading import load
from lora_ft.models.model import Model
from lora_ft.publishing.model_card import refresh_card
from lora_ft.reports.run_report import write_run_report
from lora_ft.runs.run import ADAPTER, PREDICTIONS, SCORES, TASK, Run, is_run
from lora_ft.tasks.files import as_task, read_task
from lora_ft.tasks.inputs import input_paths
from lora_ft.tasks.schema import SplitName, Task

VERSION = 2  # format of scores-SPLIT.json


@dataclass(frozen=True)
class ModelScores:
    """Scores of one model.

    Attributes:
        model: Name of the model.
        scores: Each score of the task's metrics with its 95 % interval, 0 to 100.
        cut_share: Share of answers that ended at the length limit.
        mean_tokens: Mean length of an answer, in tokens.
        samples_per_second: Rows per second of generation.
        valid_labels: Share of answers that are a label; None for a task without labels.
        labels: Scores of each label; None for a task without labels.
    """

    model: str
    scores: dict[str, Estimate]
    cut_share: float
    mean_tokens: float
    samples_per_second: float
    valid_labels: float | None = None
    labels: dict[str, LabelScore] | None = None

    def __str__(self) -> str:
        return f"{self.model}: " + ", ".join(f"{name} {score}" for name, score in self.scores.items())


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        task: Name of the task.
        split: Split of the task.
        rows: Number of rows.
        model: Scores of the model.
        baseline: Scores of the untouched base, if requested.
        difference: Model minus base on the same rows, with the paired interval.
        how: Signature of each score that has one: words, sentences, sacrebleu's signature.
        records: Further facts of each score that has some: model, prompt and counts of a judge.
        predictions: File with every answer, or None.
        warnings: Reasons why the scores may mislead.
    """

    task: str
    split: str
    rows: int
    model: ModelScores
    baseline: ModelScores | None
    difference: dict[str, Estimate] | None
    how: dict[str, str]
    predictions: Path | None
    warnings: list[str] = field(default_factory=list)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, Estimate]:
        """Return the scores of the model by name."""
        return self.model.scores

    def __str__(self) -> str:
        lines = [f"{self.model.model} on {self.rows:,} {self.split} rows of '{self.task}'"]
        for name, score in self.scores.items():
            gain = f", {self.difference[name].signed} over the base" if self.difference else ""
            lines.append(f"{name}: {score}{gain}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def as_dict(self) -> dict[str, Any]:
        """Return the content of a run's scores-SPLIT.json."""
        names = {"model": "scores"}  # in version 2 of the format
        return {"version": VERSION} | {names.get(name, name): value for name, value in plain_fields(self).items()}


@dataclass(frozen=True)
class BankEvaluation:
    """The result of `evaluate_bank`.

    Attributes:
        scored: Evaluation of each adapter on its own task.
        by: Name of each task's main score (`evaluate.metric`).
        failed: Reason for each adapter that could not be scored.
    """

    scored: dict[str, Evaluation] = field(default_factory=dict)
    by: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{name}: {self.by[name]} {result.scores[self.by[name]]} ({result.rows:,} {result.split} rows)"
            for name, result in self.scored.items()
        ]
        return "\n".join([*lines, *(f"{name}: not scored: {reason}" for name, reason in self.failed.items())])

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the types of JSON."""
        return {"version": VERSION} | plain_fields(self)


def evaluate(
    name: str | os.PathLike[str],
    *,
    task: Task | str | os.PathLike[str] | None = None,
    adapter: str | None = None,
    base: str | None = None,
    overrides: Sequence[str] = (),
    split: SplitName | None = None,
    limit: int | None = None,
    baseline: bool = False,
    batch_size: int = BATCH_SIZE,
    predictions: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a model.

    Args:
        name: Run, checkpoint, bundle or base.
        task: Task whose rows and settings are used. Default: the model's own.
        adapter: Adapter of a bank to score. Default: the base of the bank.
        base: Base to load instead of the one that a run or an adapter names.
        overrides: Keys to change in the task, as in `load_task`. A `Task` is changed before it is passed instead.
        split: Split of the task. Default: test, or validation for a task without test rows.
        limit: Maximum number of rows.
        baseline: Also score the untouched base on the same rows.
        batch_size: Number of rows generated together.
        predictions: JSON lines file for the answers. Default for a run: predictions-SPLIT.jsonl in its folder.
        progress: Receives stages and steps.

    Raises:
        UsageError, LoraFtError: The model or the rows cannot be used.
    """
    progress, name = progress or Silent(), _whole_run(os.fspath(name))
    answers = None if predictions is None else Path(predictions)
    if answers is not None:
        refuse_file(answers, "--predictions")
    if overrides and task is None and adapter is None:
        task = _own_task(name, overrides)
    requested = None if task is None else as_task(task, overrides)
    progress.stage("loading")
    model = load(name, adapter=adapter, base=base, task=requested)
    if model.notice:
        progress.note(model.notice)
    scored_task = requested or model.task or _stored_task(model, overrides)
    split = split or _default_split(scored_task, progress)
    if answers is not None:
        refuse_file(answers, "--predictions", inputs=input_paths(scored_task))
    if model.kind == "run":
        _ = Run(name).scores  # the model card reads them, so refuse a damaged file before generating
        require_writable(Path(name), "copy the run to a folder that you can write")
        answers = answers or Path(name) / PREDICTIONS.format(split)
    evaluation = _evaluate(model, scored_task, _Request(split, limit, baseline, batch_size, answers), progress)
    if model.kind == "run":
        write_json(Path(name) / SCORES.format(split), evaluation.as_dict())
        refresh_card(Path(name))
        write_run_report(Run(name), progress)
    return evaluation


def evaluate_bank(
    name: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    split: SplitName | None = None,
    limit: int | None = None,
    baseline: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> BankEvaluation:
    """Score every adapter of a bank on its own task. Arguments are those of `evaluate`.

    Raises:
        UsageError: The model is not a bank, or the bank has no adapters.
        LoraFtError: A file of the bank is damaged.
    """
    progress = progress or Silent()
    progress.stage("loading")
    bank = load(name)
    if not (names := bank.adapters):
        raise UsageError(f"{name} has no adapters", "score its base with --task TASK")
    result = BankEvaluation()
    for adapter in names:
        model = bank.with_adapter(adapter)
        try:
            task = _stored_task(model, overrides)
            request = _Request(split or _default_split(task, progress), limit, baseline, batch_size)
            evaluation = _evaluate(model, task, request, progress)
        except LoraFtError as error:  # mostly rows missing on this machine; other adapters may have theirs
            result.failed[adapter] = str(error)
            continue
        metric = task.evaluate.metric
        result.scored[adapter] = evaluation
        result.by[adapter] = metric if metric in evaluation.scores else next(iter(evaluation.scores))
    return result


def _default_split(task: Task, progress: Progress) -> SplitName:
    split = split_to_score(task)
    if split != "test":
        progress.note(f"task '{task.name}' has no test rows; scoring its {split} rows")
    return split


def _whole_run(name: str) -> str:
    """Return the folder of a run for its folder `adapter`, which `load` opens as the run. Others stay unchanged."""
    folder = expanded(name)
    folder = folder.parent if folder.name == ADAPTER and is_run(folder.parent) else folder
    return str(folder) if is_run(folder) else name


def _own_task(name: str, overrides: Sequence[str]) -> str:
    """Return a model's own task file, to which overrides apply."""
    file = Path(name) / TASK
    if not file.is_file():
        raise UsageError(f"--set {overrides[0]} needs a task, but {name} has none", "add --task TASK")
    return str(file)


def _stored_task(model: Model, overrides: Sequence[str]) -> Task:
    """Return the task that a bank stores with an adapter."""
    more = "name an adapter, or " if model.adapters and model.adapter is None else ""
    if model.adapter is not None and (stored := model.backend.task_of(model.adapter)):
        content, file = stored
        return read_task(content, file, overrides)
    raise UsageError(f"{model.name} stores no task to score it on", f"{more}add --task TASK")


@dataclass(frozen=True)
class _Request:
    """Rows to score, and options.

    Attributes:
        split: Split of the task.
        limit: Maximum number of rows.
        baseline: Also score the untouched base.
        batch_size: Number of rows generated together.
        predictions: File for the answers.
    """

    split: SplitName
    limit: int | None
    baseline: bool
    batch_size: int
    predictions: Path | None = None


@dataclass(frozen=True)
class _Answered:
    """A model's answers, their scores, and the scores of each row by name."""

    answers: list[Answer]
    scores: ModelScores
    rows: dict[str, Scored]

    def line(self, row: int) -> dict[str, Any]:
        """Return the answer to a row and its scores, as a line of predictions has them."""
        figures = {name: float(score.rows[row]) for name, score in self.rows.items()}
        scores = {name: round(figure, 2) if math.isfinite(figure) else None for name, figure in figures.items()}
        details = {key: values[row] for score in self.rows.values() for key, values in score.details.items()}
        return {"output": self.answers[row].text} | scores | details


def _evaluate(model: Model, task: Task, request: _Request, progress: Progress) -> Evaluation:
    if request.limit is not None and request.limit < 1:
        raise UsageError(f"limit is not positive (got {request.limit})", "raise it, or leave it out for all rows")
    task = with_labels(task)
    splits = load_splits(task, [request.split])
    examples = require(splits, request.split, task)[: request.limit]
    require_metrics(task.metrics, task.evaluate)
    progress.stage("looking for duplicates of training rows")
    if "judge" in task.metrics and task.evaluate.judge is not None:
        progress.note(
            f"sources and answers of {len(examples):,} rows are sent to the judge at {task.evaluate.judge.url}"
        )
    trained = model.kind in ("run", "bundle") or model.task is not None
    checks = check_rows(task, request.split, examples, may_be_selected=trained)
    scored = _score(model, examples, task, request.batch_size, progress)
    warnings = answer_warnings(task, examples, scored.answers, model.backend.tokenizer)
    base = gain = None
    if request.baseline:
        untouched = load(task.base) if model.adapter is None else model.with_adapter(None)
        base = _score(untouched, examples, task, request.batch_size, progress)
        seeds = {"seed": task.evaluate.seed, "resamples": task.evaluate.bootstrap}
        gain = {name: difference(score, base.rows[name], **seeds) for name, score in scored.rows.items()}
    records = {name: dict(score.record) for name, score in scored.rows.items() if score.record}
    evaluation = Evaluation(
        task.name,
        request.split,
        len(examples),
        scored.scores,
        base.scores if base else None,
        gain,
        {name: score.how for name, score in scored.rows.items() if score.how},
        request.predictions,
        [*splits.warnings, *checks.warnings, *warnings, *ungraded_answers(records)],
        records,
    )
    if request.predictions is not None:
        shown = columns_to_slice([example.row for example in examples], task.data.target)
        columns = [{name: example.row[name] for name in shown} for example in examples]
        write_text(request.predictions, _predictions(examples, columns, checks.overlap, scored, base))
    return evaluation


def _score(model: Model, examples: Sequence[Example], task: Task, batch_size: int, progress: Progress) -> _Answered:
    progress.stage(f"generating with {model.name}", len(examples))
    began = time.perf_counter()
    prompts = [example.prompt for example in examples]
    options = task.scoring_options()
    if model.backend.tokenizer.codec.name != task.codec:  # a base does not write what the schema is about
        options[SCHEMA] = False
    answers = model.backend.generate(prompts, options, batch_size=batch_size, on_progress=progress.advance)
    seconds = time.perf_counter() - began
    settings = task.evaluate
    texts, references = [answer.text for answer in answers], [example.references for example in examples]
    template = Prompt(task.prompt)
    sources = ["\n".join(template.texts(example.row)) for example in examples]
    rows = measure(task.metrics, texts, references, settings, sources)
    scores = ModelScores(
        model=model.name,
        scores={name: row.estimate(seed=settings.seed, resamples=settings.bootstrap) for name, row in rows.items()},
        cut_share=sum(answer.cut for answer in answers) / len(answers),
        mean_tokens=sum(answer.tokens for answer in answers) / len(answers),
        samples_per_second=len(answers) / seconds,
        valid_labels=sum(text.strip() in task.known_labels for text in texts) / len(texts) if task.labels else None,
        labels=by_label(texts, references, task.known_labels) if task.labels else None,
    )
    return _Answered(answers, scores, rows)


def _digest(row: Row) -> str:
    """Return a digest of a row that does not depend on the prompt."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _predictions(
    examples: Sequence[Example],
    columns: Sequence[dict[str, Any]],
    overlap: Sequence[Overlap],
    scored: _Answered,
    base: _Answered | None,
) -> str:
    """Return answers and row scores as JSON lines, with those of the base if it was scored."""
    lines = []
    for i, (example, answer) in enumerate(zip(examples, scored.answers, strict=True)):
        entry = {
            "row": _digest(example.row),
            "prompt": example.prompt,
            **scored.line(i),
            "references": list(example.references),
            "tokens": answer.tokens,
            "cut": answer.cut,
            "source_cut": answer.source_cut,
            **({"columns": columns[i]} if columns[i] else {}),
            **({"overlap": overlap[i]} if overlap else {}),
            **({"baseline": base.line(i)} if base else {}),
        }
        lines.append(json.dumps(entry, ensure_ascii=False))
    return "\n".join(lines) + "\n"

"""The verb `validate`: find all errors in a task and its data, and show the plan of its training."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from lora_ft.core.codecs import Codec, codec_named
from lora_ft.core.errors import LoraFtError
from lora_ft.core.memory import device_memory
from lora_ft.core.plain import plain_fields
from lora_ft.core.progress import Progress, Silent
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.data.batching import Encoded, encode
from lora_ft.data.chats.summary import ChatSummary
from lora_ft.data.label_counts import label_counts, label_warnings
from lora_ft.data.labels import check_labels
from lora_ft.data.splits import Example, Splits, load_splits, training_examples, with_labels
from lora_ft.evaluation.metrics.structured import VALID, structured
from lora_ft.evaluation.warnings import seen_in_training
from lora_ft.models.bases import Base, find_base, load_tokenizer
from lora_ft.models.generation import check_generation, generation_notes
from lora_ft.models.start_from import with_start_adapter
from lora_ft.tasks.error_details import ErrorDetails, shown
from lora_ft.tasks.files import as_task
from lora_ft.tasks.schema import SPLITS, Task
from lora_ft.training.feasibility import NO_VALIDATION, obstacles
from lora_ft.training.memory_estimates import GIB, Batch, Shape, suggest_smaller, task_memory
from lora_ft.training.plan import Plan, make_plan

_TARGETS = 1000  # training targets that are compared with a schema: 0.2 ms each
_PERCENTILES = (50, 90, 95, 100)
_SHOWN = 8  # characters
_ROW = re.compile(r"(?::\d+|\[\d+\])(?: \(line \d+\))?(?=:? )")  # the place of a row in a file


@dataclass(frozen=True)
class Lengths:
    """Tokens of one side of a split.

    Attributes:
        name: Split and side, such as "train prompts".
        rows: Number of texts.
        percentiles: Lengths at 50, 90, 95 and 100 %, in tokens.
        limit: Maximum length, in tokens.
        cut_share: Share of texts that exceed the limit.
        unknown_share: Share of tokens that the vocabulary lacks (<unk>).
        lacking: Number of occurrences of each character that the vocabulary lacks, the most frequent first. It is
            counted after the task's codec, as is `newline_share`.
        newline_share: Share of texts with newlines, which T5's tokenizer replaces by spaces.
    """

    name: str
    rows: int
    percentiles: tuple[int, ...]
    limit: int
    cut_share: float
    unknown_share: float
    lacking: dict[str, int]
    newline_share: float


@dataclass(frozen=True)
class Validation:
    """The result of `validate`.

    Attributes:
        task: Name of the task.
        errors: Errors in the task or its data.
        lengths: Token counts of each side of each split; empty if the rows or the base cannot be read.
        warnings: Problems that do not prevent training.
        plan: Training plan; None if there are errors.
        labels: Number of rows of each label, by split.
        chats: Summary of each chat export.
    """

    task: str
    errors: list[ErrorDetails]
    lengths: list[Lengths] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    plan: Plan | None = None
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    chats: list[ChatSummary] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Return whether the task can be trained."""
        return not self.errors

    def __str__(self) -> str:
        lines = [f"{self.task}: {len(self.errors)} errors" if self.errors else f"{self.task}: ready to train"]
        lines += [f"{error.key}: {error.problem}" for error in self.errors]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([*lines, *(self.plan.lines() if self.plan else [])])

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the types of JSON."""
        return plain_fields(self)


def validate(
    source: Task | str | os.PathLike[str], overrides: Sequence[str] = (), *, progress: Progress | None = None
) -> Validation:
    """Check a task without training it.

    Args:
        source: Task, task file or recipe.
        overrides: Keys to change, as in `load_task`.
        progress: Receives stages and steps.

    Raises:
        InvalidTaskError: Keys of the task are invalid. All errors are listed, and the data is not read.
        UsageError: The file does not exist, or is not YAML.
    """
    progress = progress or Silent()
    errors: list[ErrorDetails] = []
    task = _with_start_adapter(as_task(source, overrides), errors)
    progress.stage("finding the base")
    base = _try(errors, "base", task.base, lambda: find_base(task.base))
    progress.stage("reading the rows")
    label_errors: list[ErrorDetails] = []
    task = _try(label_errors, "labels", task.labels, lambda: with_labels(task)) or task
    splits = _load(task, errors)
    if splits is not None and splits.train:  # otherwise errors of the rows already say it
        errors += label_errors
    if base is None or splits is None or errors:
        return Validation(task.name, errors, chats=splits.chats if splits else [])
    tokenizer = _try(
        errors,
        "lora.new_tokens",
        task.lora.new_tokens,
        lambda: load_tokenizer(base.folder, task.codec, task.lora.new_tokens),
    )
    if tokenizer is None:
        return Validation(task.name, errors)
    lengths = [
        _measure(f"{name} {side}", texts, tokenizer, limit)
        for name in SPLITS
        if splits[name]
        for side, texts, limit in _sides(task, tokenizer.codec, splits[name])
    ]
    _try(errors, "labels", task.labels, lambda: check_labels(task, tokenizer))
    notes = _try(
        errors,
        "generate",
        task.generate.model_dump(exclude_none=True),
        lambda: _generation_notes(task, base, tokenizer, splits),
    )
    for name in ("train", "validation"):
        _try(
            errors,
            "lengths.target",
            task.lengths.target,
            partial(encode, splits[name], tokenizer, task.lengths, name),
        )
    errors += obstacles(task, base.config, splits)
    invalid = _try(errors, "evaluate.json_schema", task.evaluate.json_schema, lambda: _schema_warnings(task, splits))
    counts = label_counts(task, splits)
    warnings = [
        *_warnings(task, base, splits, lengths),
        *label_warnings(task, counts),
        *(invalid or []),
        *(notes or []),
    ]
    plan = None
    if not errors:
        rows = encode(training_examples(task, splits), tokenizer, task.lengths, "train")
        plan = _try(errors, "lora", task.lora.target_modules, lambda: make_plan(task, base.config, rows))
        warnings += _memory_warnings(task, base, plan, rows) if plan else []
    return Validation(task.name, errors, lengths, warnings, plan, counts, splits.chats)


def _generation_notes(task: Task, base: Base, tokenizer: Tokenizer, splits: Splits) -> list[str]:
    """Check the generation settings, and return warnings about the base's own, and about targets they exclude."""
    constraint = check_generation(task, base, tokenizer).constraint
    notes = generation_notes(base, tokenizer)
    if constraint is None:
        return notes
    targets = tokenizer.encode_targets([example.target for example in splits.train[:_TARGETS]])
    excluded = [number for number, target in enumerate(targets) if not constraint.accepts(target)]
    if excluded:
        notes.append(
            f"{len(excluded):,} of {len(targets):,} training targets cannot be generated under generate.json_schema, "
            f"such as {shown(splits.train[excluded[0]].target)}; "
            "they are invalid, or their properties have another order"
        )
    return notes


def _with_start_adapter(task: Task, errors: list[ErrorDetails]) -> Task:
    """Return the task with the section `lora` of its start adapter; if that fails, add an error and ignore the key."""
    without = task.model_copy(update={"lora": task.lora.model_copy(update={"start_from": None})})
    task_of_adapter: Task | None = _try(
        errors, "lora.start_from", task.lora.start_from, lambda: with_start_adapter(task)
    )
    return task_of_adapter or without


def _load(task: Task, errors: list[ErrorDetails]) -> Splits | None:
    """Return the splits. Each is read separately, so that the errors of all are reported."""
    examples: dict[str, list[Example]] = {}
    left_out: dict[str, int] = {}
    warnings: list[str] = []
    chats: list[ChatSummary] = []
    for name in SPLITS:
        alone = _try(errors, f"data.{name}", getattr(task.data, name), lambda name=name: load_splits(task, [name]))  # type: ignore[misc]
        if alone is not None:
            examples[name] = alone[name]
            left_out |= alone.left_out
            warnings += alone.warnings
            chats += alone.chats
    if "train" in examples and not examples["train"]:
        errors.append(ErrorDetails("data.train", task.data.train, "there are no training rows; name a file"))
    if len(examples) < len(SPLITS):
        return None
    # Every split reads the same source, so its warnings and chats occur several times.
    return Splits(
        **examples, left_out=left_out, warnings=list(dict.fromkeys(warnings)), chats=list(dict.fromkeys(chats))
    )


def _try(errors: list[ErrorDetails], key: str, value: Any, job: Callable[[], Any]) -> Any:
    try:
        return job()
    except LoraFtError as error:
        text = re.sub(r"^data\.\w+: ", "", str(error))
        # A split cut from a faulty file fails with the same message as the file, for the same row or another one.
        if all(_ROW.sub("", text, 1) != _ROW.sub("", earlier.problem, 1) for earlier in errors):
            errors.append(ErrorDetails(key, value, text))
        return None


def _sides(task: Task, codec: Codec, examples: Sequence[Example]) -> list[tuple[str, list[str], int]]:
    return [
        ("prompts", [codec.encode_prompt(example.prompt) for example in examples], task.lengths.source),
        ("targets", [codec.encode(example.target) for example in examples], task.lengths.target),
    ]


def _measure(name: str, forms: Sequence[str], tokenizer: Tokenizer, limit: int) -> Lengths:
    rows = tokenizer.encode_forms(forms)
    lengths = np.array([len(row) for row in rows])
    keeps_lines = tokenizer.decode(tokenizer.encode_forms(["a\nb"])) == ["a\nb"]
    unknown = sum(row.count(tokenizer.unknown) for row in rows) if tokenizer.unknown is not None else 0
    return Lengths(
        name=name,
        rows=len(forms),
        percentiles=tuple(int(value) for value in np.percentile(lengths, _PERCENTILES, method="nearest")),
        limit=limit,
        cut_share=float((lengths > limit).mean()),
        unknown_share=unknown / int(lengths.sum()),
        lacking=dict(tokenizer.lacking(forms).most_common()),
        newline_share=0.0 if keeps_lines else sum("\n" in form for form in forms) / len(forms),
    )


def _memory_warnings(task: Task, base: Base, plan: Plan, rows: Sequence[Encoded]) -> list[str]:
    """Return a warning if a training step on the longest rows needs more memory than there is."""
    batch = Batch(
        min(task.train.per_device_train_batch_size, len(rows)),
        max(len(row.input_ids) for row in rows),
        max(len(row.labels) for row in rows),
    )
    shape, bf16, room = Shape.of(base.config), plan.precision.is_bf16, device_memory(plan.device)
    # packed rows of FLAN-T5-small need 0.79 to 0.91 of the estimate without the heap's growth
    cpu = plan.device == "cpu" and not (plan.packed and task.method == "lora")
    need = task_memory(task, shape, batch, plan.trainable, bf16=bf16, cpu=cpu)
    total, kept = need.total + plan.kept_bytes, plan.kept_bytes
    if total <= room:
        return []
    where = "the GPU" if plan.device == "cuda" else "this machine"
    parts = f"activations: {need.activations / GIB:.1f}" + (f", encoder states: {kept / GIB:.1f}" if kept else "")
    return [
        f"training needs about {total / GIB:.1f} GiB ({parts}), but {where} has "
        f"{room / GIB:.1f}; settings that fit: "
        f"{suggest_smaller(task, shape, batch, plan.trainable, bf16=bf16, cpu=cpu, room=room - kept)}"
    ]


def _warnings(task: Task, base: Base, splits: Splits, lengths: Sequence[Lengths]) -> list[str]:
    warnings = [*([base.notice] if base.notice else []), *splits.warnings]
    for split in ("validation", "test"):
        warnings += seen_in_training(task, split, splits[split], splits.train).warnings
    if not splits.validation:
        warnings.append(NO_VALIDATION)
    if not splits.test:
        warnings.append("there are no test rows; set data.test or data.split.test to score the model on new rows")
    for side in lengths:
        if side.unknown_share > 0.001:
            frequent = " ".join(list(side.lacking)[:_SHOWN])
            warnings.append(
                f"{side.name}: {side.unknown_share:.1%} of the tokens are <unk>, {sum(side.lacking.values()):,} "
                f"characters that T5 lacks, most often {frequent}{_codec_advice(task, side.lacking)}"
            )
        if side.cut_share > 0.05 and "prompts" in side.name:
            warnings.append(f"{side.name}: {side.cut_share:.0%} are cut at lengths.source = {side.limit}")
        if side.newline_share:
            limitation = "T5 cannot write" if "targets" in side.name else "T5 reads as spaces"
            warnings.append(f"{side.name}: {side.newline_share:.0%} have newlines, which {limitation}; set codec: text")
    return warnings


def _schema_warnings(task: Task, splits: Splits) -> list[str]:
    """Return warnings about targets that the task's own schema refuses."""
    if task.evaluate.json_schema is None:
        return []
    warnings = []
    for name in (name for name in SPLITS if splits[name]):
        targets = [example.target for example in splits[name]]
        refused = np.flatnonzero(structured(targets, [()] * len(targets), task.evaluate.json_schema)[VALID] == 0)
        if len(refused):
            warnings.append(
                f"{name} targets: {len(refused):,} are invalid under {task.evaluate.json_schema}, "
                f"such as {shown(targets[refused[0]])}"
            )
    return warnings


def _codec_advice(task: Task, lacking: Iterable[str]) -> str:
    """Return the advice to set a codec if that encodes some of the characters, else ""."""
    text = codec_named("text")
    return (
        "; set codec: text"
        if task.codec == "none" and any(text.encode(character) != character for character in lacking)
        else ""
    )

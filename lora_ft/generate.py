"""The job `generate`: texts or rows through a model's prompt, one answer each."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_ft.core.errors import UsageError
from lora_ft.core.progress import Progress, Silent
from lora_ft.core.tokenizer import whole
from lora_ft.models.backends import BATCH_SIZE, Answer, OnnxBackend
from lora_ft.models.loading import Model


def generate(
    model: Model,
    rows: str | Sequence[str | Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    raw: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[str]:
    """The texts of `answers`."""
    found = answers(model, rows, options, raw=raw, batch_size=batch_size, progress=progress)
    return [answer.text for answer in found]


def answers(
    model: Model,
    rows: str | Sequence[str | Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    raw: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[Answer]:
    """Answers, in the order of the rows.

    Args:
        model: from `load`.
        rows: One text, several, or rows with the columns of the model's prompt.
        options: of generation, by transformers' names; they take precedence over the task's own. Answers that are
            sampled without a seed differ from call to call.
        raw: the texts are prompts already.
        batch_size: rows generated together.
        progress: told what happens.

    Raises:
        UsageError: a row does not fit the prompt, or an option the engine.
    """
    progress = progress or Silent()
    rows = [rows] if isinstance(rows, str) else rows
    if (names := _adapters(model, rows)) and isinstance(model.engine, OnnxBackend):
        prompts = _prompts([_as_asked(model, name) for name in names], rows, raw, progress)
        progress.stage("generating", len(prompts))
        found = model.engine.mixed(prompts, names, options, batch_size=batch_size)
    else:
        prompts = _prompts([model] * len(rows), rows, raw, progress)
        progress.stage("generating", len(prompts))
        own = {**model.options, **options}
        found = model.engine.generate(prompts, own, batch_size=batch_size, done=progress.advance)
    if cut := sum(answer.source_cut for answer in found):
        progress.note(f"{cut:,} of {len(found):,} prompts are longer than the model's source length and were cut")
    return found


def stream(
    model: Model, rows: Sequence[str | Mapping[str, Any]], options: Mapping[str, Any], *, raw: bool = False
) -> Iterator[str]:
    """Bits of text as they are made, a line for each row; arguments as of `generate`.

    Raises:
        UsageError: the model is no bundle, or as `generate`.
    """
    if not isinstance(model.engine, OnnxBackend):
        raise UsageError(f"{model.name} cannot stream", "export it: bundles can")
    names = _adapters(model, rows) or [model.engine.adapter] * len(rows)
    prompts = _prompts([_as_asked(model, name) for name in names], rows, raw, Silent())
    for prompt, name in zip(prompts, names, strict=True):
        yield from model.engine.generator.stream(prompt, adapter=name, **options)
        yield "\n"


def drawn_seed(model: Model, options: Mapping[str, Any], rows: Sequence[str | Mapping[str, Any]] = ()) -> int | None:
    """Return a fresh seed where answers would be sampled without one, so that it can be told; else None.

    Args:
        model: from `load`.
        options: of generation; they take precedence over the task's own.
        rows: the inputs; those of a bank may name adapters, whose tasks have options of their own.
    """
    own = [_as_asked(model, name).options for name in dict.fromkeys(_adapters(model, rows))] or [model.options]
    every = [{**settings, **options} for settings in own]
    if not any(one.get("do_sample") for one in every) or any(one.get("seed") is not None for one in every):
        return None
    return secrets.randbelow(2**31)


def _adapters(model: Model, rows: Sequence[str | Mapping[str, Any]]) -> list[str | None]:
    """The adapter of each row, where a bank is asked by rows that name theirs in a column `adapter`; else none."""
    engine = model.engine
    if not (isinstance(engine, OnnxBackend) and engine.generator.bank and engine.adapter is None):
        return []
    names = [None if isinstance(row, str) else row.get("adapter") or None for row in rows]
    return names if any(names) else []


def _as_asked(model: Model, adapter: str | None) -> Model:
    """The model with the prompt of one of its adapters."""
    assert isinstance(model.engine, OnnxBackend)
    settings = model.engine.generator.of(adapter)
    return replace(model, prompt=settings.prompt, options=dict(settings.defaults))


def _prompts(
    models: Sequence[Model], rows: Sequence[str | Mapping[str, Any]], raw: bool, progress: Progress
) -> list[str]:
    """Return the prompt of each row, by the model that it is for, without half characters."""
    prompts = []
    for number, (model, row) in enumerate(zip(models, rows, strict=True), 1):
        try:
            prompts.append(_prompt(model, row, raw))
        except UsageError as error:
            place = "" if isinstance(row, str) or len(rows) == 1 else f"row {number}: "
            raise UsageError(f"{place}{error.message}", error.remedy) from error
    sound = [whole(prompt) for prompt in prompts]
    halves = [number for number, (text, other) in enumerate(zip(prompts, sound, strict=True), 1) if text != other]
    if halves:
        progress.note(
            f"warning: {len(halves):,} of {len(rows):,} rows hold half a character (a lone surrogate), which is read "
            f"as U+FFFD, first row {halves[0]}; write the text as UTF-8"
        )
    return sound


def _prompt(model: Model, row: str | Mapping[str, Any], raw: bool) -> str:
    if raw or model.prompt is None:
        if not isinstance(row, str):
            reason = "--raw takes text, not rows" if raw else f"{model.name} has no prompt to put rows into"
            raise UsageError(reason, "give text, or a model with a task")
        return row
    return model.prompt.fill_text(row) if isinstance(row, str) else model.prompt.fill(row)

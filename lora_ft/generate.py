"""The verb `generate`: fill a model's prompt with texts or rows, and return an answer to each."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lora_ft.core.progress import Progress
from lora_ft.models.backends import BATCH_SIZE, Answer
from lora_ft.models.loading import load
from lora_ft.models.model import Input, Model, listed_rows


def generate(
    model: Model | str | os.PathLike[str],
    rows: Input | Iterable[Input],
    options: Mapping[str, Any] | None = None,
    *,
    raw: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[str]:
    """Return one answer for each row.

    Args:
        model: Model from `load`, or an argument of `load`.
        rows: One text or row, or several, as for `Model.generate`.
        options: Generation options by transformers' names. They take precedence over those of the task.
        raw: Use texts as whole prompts, without the template.
        batch_size: Number of rows generated together.
        progress: Receives the progress; None is silent.

    Raises:
        UsageError: A row does not fit the prompt, or the backend does not support an option.
    """
    results = answers(model, rows, options, raw=raw, batch_size=batch_size, progress=progress)
    return [answer.text for answer in results]


def answers(
    model: Model | str | os.PathLike[str],
    rows: Input | Iterable[Input],
    options: Mapping[str, Any] | None = None,
    *,
    raw: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[Answer]:
    """Return answers with their length and whether something was cut. Arguments are those of `generate`."""
    return _loaded(model).answers(rows, raw=raw, batch_size=batch_size, progress=progress, **(options or {}))


def stream(
    model: Model | str | os.PathLike[str],
    rows: Input | Iterable[Input],
    options: Mapping[str, Any] | None = None,
    *,
    raw: bool = False,
) -> Iterator[str]:
    """Yield pieces of text as they are generated, and a newline after each row. Arguments are those of `generate`.

    Raises:
        UsageError: The model is not a bundle, or an error of `generate`.
    """
    yield from _loaded(model).stream(rows, raw=raw, **(options or {}))


def new_seed(model: Model, options: Mapping[str, Any], rows: Input | Iterable[Input] = ()) -> int | None:
    """Return a new seed if answers would be sampled without one, so that it can be reported; else None.

    Args:
        model: Model from `load`.
        options: Generation options. They take precedence over those of the task.
        rows: Texts or rows. Rows for a bank may name adapters, whose tasks have options of their own.
    """
    names = model.adapters_of(listed_rows(rows))
    defaults = [model.backend.settings_of(name).defaults for name in dict.fromkeys(names)] or [model.options]
    merged = [{**settings, **options} for settings in defaults]
    if not any(each.get("do_sample") for each in merged) or any(each.get("seed") is not None for each in merged):
        return None
    return secrets.randbelow(2**31)


def _loaded(model: Model | str | os.PathLike[str]) -> Model:
    return model if isinstance(model, Model) else load(model)

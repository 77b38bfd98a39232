"""The job `generate`: texts or rows through a model's prompt, one answer each."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_ft.core.progress import Progress
from lora_ft.models.backends import BATCH_SIZE, Answer
from lora_ft.models.loading import load
from lora_ft.models.model import Input, Model, listed_rows


def generate(
    model: Model | str | os.PathLike[str],
    rows: Input | Sequence[Input],
    options: Mapping[str, Any] | None = None,
    *,
    raw: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[str]:
    """Return one answer for each row.

    Args:
        model: Model from `load`, or what `load` takes.
        rows: One text or row, or several, as for `Model.generate`.
        options: Generation options by transformers' names. They take precedence over those of the task.
        raw: Whether the texts are finished prompts.
        batch_size: Rows generated together.
        progress: Receives the progress; None is silent.

    Raises:
        UsageError: A row does not fit the prompt, or the backend does not support an option.
    """
    found = answers(model, rows, options, raw=raw, batch_size=batch_size, progress=progress)
    return [answer.text for answer in found]


def answers(
    model: Model | str | os.PathLike[str],
    rows: Input | Sequence[Input],
    options: Mapping[str, Any] | None = None,
    *,
    raw: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[Answer]:
    """Return the answers with their numbers of tokens and what was cut; arguments as for `generate`."""
    return _loaded(model).answers(rows, raw=raw, batch_size=batch_size, progress=progress, **(options or {}))


def stream(
    model: Model | str | os.PathLike[str],
    rows: Input | Sequence[Input],
    options: Mapping[str, Any] | None = None,
    *,
    raw: bool = False,
) -> Iterator[str]:
    """Yield pieces of text as they are generated, and a newline after each row; arguments as for `generate`.

    Raises:
        UsageError: The model is not a bundle, or as for `generate`.
    """
    yield from _loaded(model).stream(rows, raw=raw, **(options or {}))


def drawn_seed(model: Model, options: Mapping[str, Any], rows: Input | Sequence[Input] = ()) -> int | None:
    """Return a fresh seed where answers would be sampled without one, so that it can be shown; else None.

    Args:
        model: Model from `load`.
        options: Generation options. They take precedence over those of the task.
        rows: The inputs; those of a bank may name adapters, whose tasks have options of their own.
    """
    names = model.adapters_of(listed_rows(rows))
    own = [model.backend.settings_of(name).defaults for name in dict.fromkeys(names)] or [model.options]
    every = [{**settings, **options} for settings in own]
    if not any(one.get("do_sample") for one in every) or any(one.get("seed") is not None for one in every):
        return None
    return secrets.randbelow(2**31)


def _loaded(model: Model | str | os.PathLike[str]) -> Model:
    return model if isinstance(model, Model) else load(model)

"""A task's rows: read, checked, split, and put into the prompt."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from export.errors import LoraFtError, UsageError, first_line
from export.runtime.codec import Codec, codec_named
from export.runtime.prompt import Prompt
from lora_ft.chats.rows import read_chat_rows
from lora_ft.hub import require_hub
from lora_ft.labels import require_label
from lora_ft.readers import Row, read_rows
from lora_ft.source import Data
from lora_ft.task import AUTO, SPLITS, Task


@dataclass(frozen=True)
class Example:
    """One row, ready to be asked.

    Attributes:
        prompt: what the model reads, before the task's codec.
        target: what it is taught to write, before the task's codec.
        references: what its answer is scored against, at least one.
        row: the columns it came from.
    """

    prompt: str
    target: str
    references: tuple[str, ...]
    row: Row = field(compare=False, hash=False)


@dataclass(frozen=True)
class Splits:
    """A task's examples; a split that was neither given nor cut off is empty."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]

    def __getitem__(self, name: str) -> list[Example]:
        return getattr(self, name)

    @property
    def overlap(self) -> int:
        """How many validation and test prompts stand among the training prompts, word for word."""
        seen = {example.prompt for example in self.train}
        return sum(example.prompt in seen for example in (*self.validation, *self.test))


def load_splits(task: Task, only: Sequence[str] = SPLITS) -> Splits:
    """Read the splits named in `only`; the others are left empty.

    Raises:
        UsageError: a file or column is missing, or a split that is asked for is empty.
        LoraFtError: a file is damaged, a cell is empty, or a target is none of the task's labels.
    """
    data = task.data
    wanted = set(only)
    cut = _shares_to_cut(data)
    sources = {
        name: source
        for name in SPLITS
        if (source := getattr(data, name)) is not None and (name in wanted or (name == "train" and wanted & set(cut)))
    }
    if data.chat is not None:
        rows = read_chat_rows(data, sources, cut)
    else:
        rows = {name: _read(data, name, source) for name, source in sources.items()}
        if cut and "train" in rows:  # also where only training rows are wanted: what is cut off is not among them
            rows |= _cut(rows["train"], cut, data.split.seed if data.split else 0)
    prompt, codec = Prompt(task.prompt), codec_named(task.codec)
    return Splits(
        **{
            name: _examples(rows.get(name, []) if name in wanted else [], prompt, codec, data, name, task.known_labels)
            for name in SPLITS
        }
    )


def with_labels(task: Task, train: Sequence[Example] | None = None) -> Task:
    """The task with `labels: auto` replaced by the distinct targets of its training rows, sorted.

    Args:
        task: left as it is where its labels are known, or where it has none.
        train: its training rows, where they are read already.

    Raises:
        UsageError, LoraFtError: there are no training rows, or they cannot be read.
    """
    if task.labels != AUTO:
        return task
    train = load_splits(task, ["train"]).train if train is None else train
    if not train:
        raise UsageError("labels = auto are the targets of training rows, and there are none", "list the labels")
    return task.model_copy(update={"labels": sorted({example.target.strip() for example in train})})


def require(splits: Splits, name: str, task: Task) -> list[Example]:
    """The examples of a split that a job cannot do without."""
    examples = splits[name]
    if not examples:
        raise UsageError(
            f"task '{task.name}' has no {name} rows",
            f"set data.{name}, or data.split.{name} to cut a share off the training rows",
        )
    return examples


def _shares_to_cut(data: Data) -> dict[str, float]:
    """Share of the training rows of each split that is not given but asked for by data.split."""
    if data.split is None or data.train is None:
        return {}
    shares = {"validation": data.split.validation, "test": data.split.test}
    return {name: share for name, share in shares.items() if getattr(data, name) is None and share > 0}


def _cut(rows: list[tuple[str, Row]], shares: dict[str, float], seed: int) -> dict[str, list[tuple[str, Row]]]:
    shuffled = random.Random(seed).sample(rows, len(rows))
    out, start = {}, 0
    for name, share in shares.items():
        count = round(share * len(rows))
        out[name], start = shuffled[start : start + count], start + count
    if not shuffled[start:]:
        raise UsageError(f"data.split leaves no training rows of {len(rows)}", "give smaller shares")
    return out | {"train": shuffled[start:]}


def _read(data: Data, name: str, source: str | list[str]) -> list[tuple[str, Row]]:
    key = f"data.{name}"
    if data.hub is None:
        assert data.root is not None  # load_task sets it
        rows = read_rows(data.root, source, key)
        place = str(source)
    else:
        rows = _read_hub(data, str(source), key)
        place = f"{data.hub} {source}"
    if not rows:
        raise UsageError(f"{key}: {place} holds no rows", "give another file, or remove the key")
    return rows


def _read_hub(data: Data, split: str, key: str) -> list[tuple[str, Row]]:
    import datasets

    require_hub(f"the data set {data.hub}", "a local file in data.train")
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(data.hub, data.config, split=split, revision=data.revision)
    except Exception as error:  # the library raises many kinds
        raise UsageError(f"{key}: cannot load {data.hub} ({first_line(error)})") from error
    return [(f"{data.hub} {split}[{i}]", dict(row)) for i, row in enumerate(rows)]


def _examples(
    rows: list[tuple[str, Row]], prompt: Prompt, codec: Codec, data: Data, name: str, labels: Sequence[str]
) -> list[Example]:
    examples: list[Example] = []
    limit = getattr(data.limit, name)
    for where, row in rows:
        if len(examples) == limit:
            break
        several = data.references if name != "train" or data.references in row else None  # training needs the target
        columns = [*prompt.columns, data.target, *([several] if several else [])]
        lacking = [column for column in columns if column not in row]
        if lacking:
            raise UsageError(
                f"{where} has no column '{lacking[0]}'",
                f"it has {', '.join(map(str, row))}; correct prompt, data.target or data.references",
            )
        empty = [column for column in columns if _is_empty(row[column])]
        if empty and data.skip_empty:
            continue
        if empty:
            raise LoraFtError(
                f"{where}: column '{empty[0]}' is empty", "fill it, or set data.skip_empty=true to leave such rows out"
            )
        textual = prompt.columns if codec.nests else (*prompt.columns, data.target)
        nested = [column for column in textual if isinstance(row[column], list | dict)]
        if nested:
            raise UsageError(
                f"{where}: column '{nested[0]}' holds a {type(row[nested[0]]).__name__}, not text",
                "write text there; several acceptable targets belong into data.references",
            )
        target = _canonical(row[data.target], data.target, codec, where)
        references = _references(row, several, codec, where) if several else (target,)
        for text in (target, *references) if labels else ():
            require_label(text, labels, where)
        examples.append(Example(prompt.fill(row), target, references, row))
    if rows and not examples:
        raise UsageError(f"data.{name}: every row has an empty cell", "look at the columns named in the task")
    return examples


def _is_empty(value: Any) -> bool:
    """Null, blank, or a list without anything in it (a float NaN is how tables write null)."""
    if isinstance(value, list):
        return not any(not _is_empty(item) for item in value)
    return value is None or value != value or not str(value).strip()


def _references(row: Row, column: str, codec: Codec, where: str) -> tuple[str, ...]:
    value = row[column]
    values = [item for item in value if not _is_empty(item)] if isinstance(value, list) else [value]
    return tuple(_canonical(item, column, codec, where) for item in values)


def _canonical(value: Any, column: str, codec: Codec, where: str) -> str:
    plain = isinstance(value, str) or not codec.nests
    try:
        return codec.canonical(str(value) if plain else json.dumps(value, ensure_ascii=False, default=str))
    except UsageError as error:
        raise LoraFtError(f"{where}: column '{column}': {error.message}", error.remedy) from error

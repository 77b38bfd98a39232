"""Load the splits of a task: read, check and split its rows, and convert them to examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_ft.core.columns import short_floats, shortest
from lora_ft.core.errors import DataError, UsageError, first_line, raised_as
from lora_ft.core.hub import require_hub
from lora_ft.data.chats.rows import ChatRows, read_chat_rows
from lora_ft.data.chats.summary import ChatSummary
from lora_ft.data.examples import Example, ExampleMaker
from lora_ft.data.readers import Layout, Located, read_rows
from lora_ft.data.stratified import cut, oversampled
from lora_ft.tasks.data import Data
from lora_ft.tasks.rows import RowsInMemory
from lora_ft.tasks.schema import AUTO, MAX_LABELS, SPLITS, SplitName, Task

__all__ = ["Example", "Splits", "load_splits", "require", "training_examples", "with_labels"]


@dataclass(frozen=True)
class Splits:
    """The examples of a task by split; a split without a source or a share is empty.

    Attributes:
        train, validation, test: Examples of the split.
        left_out: Number of rows of each source that data.skip_empty left out for an empty cell.
        warnings: Sentences about likely mistakes in the rows, with counts.
        chats: Summaries of the chats that the rows were made from, with `data.chat`.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    left_out: dict[str, int] = field(default_factory=dict, compare=False)
    warnings: list[str] = field(default_factory=list, compare=False)
    chats: list[ChatSummary] = field(default_factory=list, compare=False)

    def __getitem__(self, name: str) -> list[Example]:
        return getattr(self, name)

    @property
    def overlap(self) -> int:
        """Number of validation and test prompts that are identical to a training prompt."""
        prompts = {example.prompt for example in self.train}
        return sum(example.prompt in prompts for example in (*self.validation, *self.test))


@raised_as(DataError)
def load_splits(task: Task, only: Sequence[str] = SPLITS) -> Splits:
    """Read the splits named in `only`, and leave the others empty.

    Raises:
        UsageError: A file or column is missing, a cell does not hold text, or a requested split is empty.
        LoraFtError: A file is damaged, a cell is empty, or a target is not one of the task's labels.
    """
    data = task.data
    requested = set(only)
    shares = _shares_to_cut(data)
    sources = {
        name: source
        for name in SPLITS
        if (source := getattr(data, name)) is not None
        and (name in requested or (name == "train" and requested & set(shares)))
    }
    chats = ChatRows()
    if data.chat is not None:
        chats = read_chat_rows(data, sources, shares)
        rows = chats.rows
    else:
        rows = {name: _read(data, name, source) for name, source in sources.items()}
    maker = ExampleMaker(task)
    surveys = {name: maker.survey(located, name) for name, located in rows.items()}
    rows = {name: survey.rows for name, survey in surveys.items()}
    if data.chat is None and shares and "train" in rows:  # also if only training rows are requested
        rows |= _cut(rows["train"], shares, task, maker)
    limited = {name: located[: getattr(data.limit, name)] for name, located in rows.items() if name in requested}
    examples = {name: [maker.example(where, row, name) for where, row in limited.get(name, [])] for name in SPLITS}
    return Splits(
        **examples,
        left_out={name: survey.left_out for name, survey in surveys.items() if survey.left_out},
        warnings=[*chats.doubts, *(warning for survey in surveys.values() for warning in survey.warnings)],
        chats=chats.chats,
    )


@raised_as(DataError)
def with_labels(task: Task, train: Sequence[Example] | None = None) -> Task:
    """Return the task with `labels: auto` replaced by the distinct targets of its training rows, sorted.

    Args:
        task: Task with or without labels; returned unchanged unless its labels are auto.
        train: Training examples of the task. Default: loaded.

    Raises:
        UsageError, LoraFtError: Training rows are missing or unreadable, or have too many distinct targets or only one.
    """
    if task.labels != AUTO:
        return task
    train = load_splits(task, ["train"]).train if train is None else train
    if not train:
        raise UsageError("labels = auto requires training rows, and the task has none", "list the labels")
    labels = sorted({example.target.strip() for example in train})
    if len(labels) > MAX_LABELS:
        raise UsageError(
            f"the training rows have {len(labels):,} distinct targets, too many for labels (at most {MAX_LABELS:,})",
            "remove labels, since the answers are free text",
        )
    if len(labels) == 1:  # a list of one label is refused, so the finished run could not be loaded
        raise UsageError(
            f"all training rows have the label {labels[0]!r}", "add rows of another label, or remove labels"
        )
    return task.model_copy(update={"labels": labels})


def training_examples(task: Task, splits: Splits) -> list[Example]:
    """Return the examples of a training epoch, with those of rare labels repeated if data.oversample is set."""
    if not task.data.oversample:
        return splits.train
    seed = task.data.split.seed if task.data.split else 0
    return [splits.train[i] for i in oversampled([example.target.strip() for example in splits.train], seed)]


@raised_as(DataError)
def require(splits: Splits, name: str, task: Task) -> list[Example]:
    """Return the examples of a split; raise UsageError if it is empty."""
    examples = splits[name]
    if not examples:
        raise UsageError(
            f"task '{task.name}' has no {name} rows",
            f"set data.{name}, or data.split.{name} to cut a share off the training rows",
        )
    return examples


def split_to_score(task: Task) -> SplitName:
    """Return the split that scores are computed on by default: test, or validation for a task without test rows."""
    data = task.data

    def has_rows(name: SplitName) -> bool:
        return getattr(data, name) is not None or (data.split is not None and getattr(data.split, name) > 0)

    return "validation" if has_rows("validation") and not has_rows("test") else "test"


def _shares_to_cut(data: Data) -> dict[str, float]:
    """Return the share of training rows to cut off for each split that data.split requests and no source provides."""
    if data.split is None or data.train is None:
        return {}
    shares = {"validation": data.split.validation, "test": data.split.test}
    return {name: share for name, share in shares.items() if getattr(data, name) is None and share > 0}


def _cut(rows: list[Located], shares: dict[str, float], task: Task, maker: ExampleMaker) -> dict[str, list[Located]]:
    """Cut splits off the training rows. With labels, each split has its share of every label."""
    seed = task.data.split.seed if task.data.split else 0
    labels = None if task.labels is None else [maker.target(where, row, "train").strip() for where, row in rows]
    return {name: [rows[i] for i in numbers] for name, numbers in cut(len(rows), shares, seed, labels).items()}


def _read(data: Data, name: str, source: str | list[str]) -> list[Located]:
    key = f"data.{name}"
    if isinstance(source, RowsInMemory):
        return [(f"{key}[{number}]", row) for number, row in enumerate(source.rows)]
    if data.hub is None:
        root = data.root or Path.cwd()  # a task created in Python has no root
        rows = read_rows(root, source, key, Layout(data.encoding, data.delimiter, data.field))
        place = str(source)
    else:
        rows = _read_hub(data, str(source), key)
        place = f"{data.hub} {source}"
    if not rows:
        raise UsageError(f"{key}: {place} has no rows", "give another file, or remove the key")
    return rows


def _read_hub(data: Data, split: str, key: str) -> list[Located]:
    import datasets

    require_hub(f"the data set {data.hub}", "a local file in data.train")
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(data.hub, data.config, split=split, revision=data.revision)
    except Exception as error:  # the library raises many types of errors
        raise UsageError(f"{key}: cannot load {data.hub} ({first_line(error)})") from error
    short = short_floats(rows.features)
    return [(f"{data.hub} {split}[{i}]", shortest(dict(row), short)) for i, row in enumerate(rows)]

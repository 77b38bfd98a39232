"""Text inside objects and lists of a row, optional columns, and the types of parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lora_ft.core.errors import UsageError
from lora_ft.data.splits import Splits, load_splits
from lora_ft.tasks.files import load_task


def load(folder: Path, scratch: Path, file: str, prompt: str, target: str, **data: Any) -> Splits:
    """Return the splits of a task over one file."""
    content = {
        "name": "t",
        "base": "offline",
        "prompt": prompt,
        "data": {"train": file, "target": target, "root": str(folder.resolve()), **data},
    }
    (scratch / "task.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_splits(load_task(scratch / "task.yaml"))


def check_translation(folder: Path, scratch: Path) -> None:
    splits = load(
        folder,
        scratch,
        "wmt.jsonl",
        "Translate: {translation.en}",
        "translation.de",
        references="translation.de",
        split={"validation": 0.2, "test": 0.2},
    )
    first = next(
        example for name in ("train", "validation", "test") for example in splits[name] if example.row["id"] == "0"
    )
    assert (first.prompt, first.target, first.references) == ("Translate: the house 0", "das Haus 0", ("das Haus 0",))


def check_answers(folder: Path, scratch: Path) -> None:
    train = load(folder, scratch, "squad.jsonl", "{question} {context}", "answers.text[0]", references="answers.text")
    assert (train.train[0].target, train.train[0].references) == ("Mia", ("Mia",))


def check_messages(folder: Path, scratch: Path) -> None:
    train = load(folder, scratch, "chatml.jsonl", "{messages[0].content}", "messages[-1].content").train
    assert [(example.prompt, example.target) for example in train[:2]] == [("say 0", "it is 0"), ("say 1", "it is 1")]


def check_optional_columns(folder: Path, scratch: Path) -> None:
    train = load(folder, scratch, "alpaca.jsonl", "{instruction}: {input?none}", "output").train
    assert [example.prompt for example in train[:2]] == ["do 0: x", "do 1: none"]


def check_types_of_parquet(folder: Path, scratch: Path) -> None:
    train = load(folder, scratch, "types.parquet", "{dialogue} {cat} {score} {dec}", "label").train
    assert [(example.prompt, example.target) for example in train[:2]] == [
        ("d 0 a 0.5 1.50", "0"),
        ("d 1 b 0.5 1.50", "1"),
    ]
    for column, kind in (("when", "a datetime"), ("b", "bytes")):
        for prompt, target in ((f"{{{column}}}", "label"), ("{dialogue}", column)):
            try:
                load(folder, scratch, "types.parquet", prompt, target)
            except UsageError as error:
                assert f"types.parquet[0]: column '{column}' holds {kind}, not text" in error.message, error.message
            else:
                raise AssertionError(f"{column} became text")

"""Files of rows as spreadsheets, databases and libraries write them."""

from __future__ import annotations

import shutil
from pathlib import Path

from lora_ft.core.errors import UsageError
from lora_ft.data.splits import Splits, load_splits
from lora_ft.tasks.files import load_task
from lora_ft.validate import validate


def load(folder: Path, scratch: Path, name: str, *overrides: str) -> Splits:
    """Return the splits that the folder's task has with one of its files."""
    shutil.copytree(folder, scratch, dirs_exist_ok=True)
    return load_splits(load_task(scratch / "task.yaml", [f"data.train={scratch / name}", *overrides]))


def check_every_format_gives_the_same_rows(folder: Path, scratch: Path) -> None:
    plain = load(folder, scratch, "ndjson.ndjson")
    assert [len(plain[name]) for name in ("train", "validation", "test")] == [6, 2, 2]
    every = {example.target for name in ("train", "validation", "test") for example in plain[name]}
    assert every == {f"They have lunch {i}." for i in range(10)}
    for name in ("jsonl_as.json", "data_key.json", "plain.jsonl.gz", "semicolon.csv", "utf16.csv"):
        assert load(folder, scratch, name) == plain, name
    assert load(folder, scratch, "data_key.json", "data.field=data") == plain


def check_backslash_quotes(folder: Path, scratch: Path) -> None:
    examples = load(folder, scratch, "backslash_quotes.csv").train
    assert all(example.prompt.startswith('Summarize: Ana: "lunch", ok? Ben: yes ') for example in examples)


def check_blanks_around_names_and_cells(folder: Path, scratch: Path) -> None:
    examples = load(folder, scratch, "header_spaces.csv").train
    assert len(examples) == 6 and all(example.target.startswith("They have lunch") for example in examples)


def check_another_encoding(folder: Path, scratch: Path) -> None:
    try:
        load(folder, scratch, "cp1252.csv")
    except Exception as error:
        assert "cp1252.csv:2 is not UTF-8" in str(error) and "data.encoding" in str(error)
    else:
        raise AssertionError("cp1252 was read as UTF-8")
    examples = load(folder, scratch, "cp1252.csv", "data.encoding=cp1252").train
    assert all("lunch – café" in example.target for example in examples)


def check_equal_headers(folder: Path, scratch: Path) -> None:
    refused(folder, scratch, "dup_columns.csv", "two columns named 'summary'")


def check_missing_values_as_words(folder: Path, scratch: Path) -> None:
    warnings = load(folder, scratch, "nan_words.csv").warnings
    assert any(
        "column 'summary': 4 of 15 cells are" in warning and "nan_words.csv:12" in warning for warning in warnings
    ), warnings
    assert any("column 'dialogue': 1 of 15 cells are 'nan'" in warning for warning in warnings), warnings
    report = validate(str(scratch / "task.yaml"), [f"data.train={scratch / 'nan_words.csv'}"])
    assert set(warnings) <= set(report.warnings)


def check_splits_of_few_rows(folder: Path, scratch: Path) -> None:
    refused(folder, scratch, "one.jsonl", "data.split.validation = 0.2 of 1 row leaves validation empty")
    refused(folder, scratch, "two.jsonl", "data.split.validation = 0.2 of 2 rows leaves validation empty")


def refused(folder: Path, scratch: Path, name: str, words: str) -> None:
    """Assert that a file is refused in these words."""
    try:
        load(folder, scratch, name)
    except UsageError as error:
        assert words in error.message, error.message
        assert error.remedy
    else:
        raise AssertionError(f"{name} was read")

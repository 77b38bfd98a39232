"""Labels: rare ones, and words and numbers that YAML takes for something else."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from lora_ft.core.errors import UsageError
from lora_ft.data.splits import load_splits
from lora_ft.tasks.files import InvalidTaskError, load_task


def check_a_label_of_one_row_is_refused_wherever_it_stands(folder: Path, scratch: Path) -> None:
    rows = [json.loads(line) for line in (folder / "rare.jsonl").read_text(encoding="utf-8").splitlines()]
    content = yaml.safe_load((folder / "t.yaml").read_text(encoding="utf-8"))
    content |= {"labels": "auto"}
    content["data"]["train"] = "rare.jsonl"
    (scratch / "task.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    for place in range(len(rows)):
        moved = [*rows[:place], rows[-1], *rows[place:-1]]
        (scratch / "rare.jsonl").write_text("\n".join(map(json.dumps, moved)), encoding="utf-8")
        try:
            load_splits(load_task(scratch / "task.yaml"))
        except UsageError as error:
            assert "the label 'rare' has a single row" in error.message, error.message
            assert "add rows of it" in error.remedy
        else:
            raise AssertionError(f"accepted at {place}")


def check_splits_are_stratified(folder: Path, scratch: Path) -> None:
    content = yaml.safe_load((folder / "t.yaml").read_text(encoding="utf-8"))
    content |= {"labels": "auto"}
    content["data"] |= {"train": "int.jsonl", "root": str(folder.resolve())}
    (scratch / "task.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    splits = load_splits(load_task(scratch / "task.yaml"))
    for name, least in (("train", 6), ("validation", 1), ("test", 1)):
        targets = [example.target for example in splits[name]]
        counts = [targets.count(label) for label in ("0", "1", "2")]
        assert min(counts) >= least and max(counts) - min(counts) <= 1, (name, counts)


def check_truth_values_and_numbers_must_be_quoted(folder: Path, scratch: Path) -> None:
    text = (folder / "t.yaml").read_text(encoding="utf-8")
    for rows, bare, quoted, word in (
        ("yn.jsonl", "[yes, no]", "['yes', 'no']", '"yes"'),
        ("int.jsonl", "[0, 1, 2]", "['0', '1', '2']", '"0"'),
    ):
        changed = text.replace("yn.jsonl", rows)
        (scratch / rows).write_bytes((folder / rows).read_bytes())
        path = scratch / "t.yaml"
        path.write_text(changed.replace("['Yes','No']", bare), encoding="utf-8")
        for attempt, overrides in ((path, []), (folder / "t.yaml", [f"labels={bare}"])):
            try:
                load_task(attempt, overrides)
            except UsageError as error:
                assert error.exit_code == 2 and "labels.0" in error.message, error.message
                assert f"quote it: {word}" in error.message, error.message
            else:
                raise AssertionError(f"labels: {bare} was accepted")
        path.write_text(changed.replace("['Yes','No']", quoted), encoding="utf-8")
        splits = load_splits(load_task(path))
        assert {example.target for example in splits.train} == set(load_task(path).known_labels)


def check_a_language_that_is_a_truth_value_must_be_quoted(folder: Path, scratch: Path) -> None:
    try:
        load_task(folder / "t2.yaml")
    except InvalidTaskError as error:
        errors = {details.key: details for details in error.errors}
        assert set(errors) == {"evaluate.language", "card.language.0"}, errors
        for details, line in zip(errors.values(), (5, 6), strict=True):
            assert 'quote it: "no"' in details.problem and details.line == line, details
    else:
        raise AssertionError("language: no was accepted")
    quoted = (folder / "t2.yaml").read_text(encoding="utf-8").replace("[no]", "['no']").replace(": no}", ": 'no'}")
    (scratch / "t2.yaml").write_text(quoted, encoding="utf-8")
    assert load_task(scratch / "t2.yaml").evaluate.language == "no"

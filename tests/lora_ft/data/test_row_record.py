"""The record of a run's rows: it reports every change and nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError
from lora_ft.data.row_record import RowRecord
from lora_ft.data.splits import Example, Splits


def examples(*names: str) -> list[Example]:
    return [Example(f"say {name}", name, (name,), {}) for name in names]


def record(train: str, validation: str = "", test: str = "") -> RowRecord:
    """Record of splits whose rows are letters."""
    return RowRecord.of(Splits(examples(*train), examples(*validation), examples(*test)))


@pytest.mark.parametrize(
    ("now", "changes"),
    [
        (record("abcdef", "gh", "ij"), []),
        (record("abcdefx", "gh", "ij"), ["train: 7 rows, was 6"]),
        (record("abcdex", "gh", "ij"), ["train: 1 of 6 rows are different"]),
        (record("bacdef", "gh", "ij"), ["train: the same rows in another order"]),
        (record("abcdef", "hg", "ij"), ["validation: the same rows in another order"]),
        (record("abcdef", "gh", "ji"), []),  # nothing of a run depends on the order of test rows
        (record("abcdef", "gh", ""), ["test: 0 rows, was 2"]),
        (
            record("abcgh", "de", "fij"),
            [
                "train: 5 rows, was 6",
                "validation: 2 of 2 rows are different",
                "test: 3 rows, was 2",
                "2 rows that were trained on are now validation rows",
                "1 row that was trained on is now a test row",
            ],
        ),
    ],
)
def test_changes_are_reported(now: RowRecord, changes: list[str]) -> None:
    assert record("abcdef", "gh", "ij").changes(now) == changes


def test_targets_and_references_are_rows_too() -> None:
    def record_of(target: str, *references: str) -> RowRecord:
        return RowRecord.of(Splits([Example("p", target, references, {})], [], []))

    for changed in (record_of("b", "a"), record_of("a", "b"), record_of("a", "a", "b"), record_of("a")):
        assert record_of("a", "a").changes(changed)


def test_columns_that_the_task_does_not_use_may_change() -> None:
    splits = [Splits([Example("p", "t", ("t",), {"id": number})], [], []) for number in (1, 2)]
    assert not RowRecord.of(splits[0]).changes(RowRecord.of(splits[1]))


rows = st.lists(st.text(alphabet=st.characters(), max_size=3), max_size=8)


@given(rows, rows, rows, st.randoms(use_true_random=False))
def test_any_change_is_found_and_equal_rows_are_equal(
    train: list[str], validation: list[str], test: list[str], random: random.Random
) -> None:
    """Half characters included, as JSON may hold them."""
    before = RowRecord.of(Splits(examples(*train), examples(*validation), examples(*test)))
    assert before.changes(before) == []
    restored = RowRecord.read(json.loads(json.dumps(before.as_dict())), Path("claim.json"))
    assert restored.changes(before) == [] and restored.digest == before.digest
    shuffled = random.sample(train, len(train))
    after = RowRecord.of(Splits(examples(*shuffled), examples(*validation), examples(*test)))
    assert bool(before.changes(after)) == (shuffled != train)


@pytest.mark.parametrize(
    "content",
    [{}, {"train": 1}, {"train": {"count": 1, "rows": ""}}, {"train": {"count": "x", "rows": "ab"}}, {"train": None}],
)
def test_damaged_record_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(LoraFtError, match=r"claim\.json is damaged"):
        RowRecord.read(content, Path("claim.json"))

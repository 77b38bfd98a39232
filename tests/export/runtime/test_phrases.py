"""A table of phrases has what several answers share, and nothing of fewer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError
from lora_ft.export.runtime import phrases
from lora_ft.export.runtime.phrases import LEAST, LENGTH, Phrases

START, END = 0, 1
answers = st.lists(st.lists(st.integers(2, 5), max_size=9).map(lambda tokens: [*tokens, END]), max_size=12)


def test_the_likeliest_token_is_found_after_the_longest_context() -> None:
    table = Phrases.count([[7, 8, 9, END]] * 3 + [[6, 8, 5, END]] * 4, START)
    assert table.find([START]) == (6, pytest.approx(4 / 8))
    assert table.find([8]) == (5, pytest.approx(4 / 8))
    assert table.find([7, 8]) == (9, pytest.approx(3 / 4))
    assert table.find([3, 7, 8, 9]) == (END, pytest.approx(3 / 4))
    assert table.find([3]) is None
    assert table.find([END]) is None


def test_text_of_fewer_answers_is_left_out() -> None:
    secret = [30, 31, 32, END]
    table = Phrases.count([secret] * (LEAST - 1) + [[30, 30, 30, 31]], START)
    assert table.find([30]) is None or table.find([30]) == (31, pytest.approx(LEAST / (LEAST + 1)))
    assert table.find([31]) is None
    assert len(Phrases.count([[5, 5, 5, 5, 5, 5]], START)) == 0  # one answer counts once


@given(rows=answers)
def test_every_entry_is_shared_by_several_answers(rows: list[list[int]]) -> None:
    table = Phrases.count(rows, START)
    texts = [[START, *row] for row in rows]
    for context, (token, share) in table._entries.items():
        phrase = [*context, token]
        holders = sum(any(text[i : i + len(phrase)] == phrase for i in range(len(text))) for text in texts)
        assert holders >= LEAST
        assert 0 < share < 1
        assert 1 <= len(context) <= LENGTH


@given(rows=answers)
def test_a_table_is_the_same_after_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]]
) -> None:
    table, path = Phrases.count(rows, START), tmp_path_factory.mktemp("table") / "phrases.npy"
    entry = table.write(path)
    again = Phrases.read(path, 6)
    assert entry["entries"] == len(table) == len(again)
    for context, (token, share) in table._entries.items():
        entry = again.find(context)
        assert entry is not None
        assert entry == (token, pytest.approx(share, abs=0.001))


def test_the_most_frequent_entries_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phrases, "MOST", 2)
    table = Phrases.count([[7, END]] * 5 + [[8, END]] * 3, START)
    assert len(table) == 2
    assert table.find([START]) == (7, pytest.approx(5 / 9))
    assert table.find([8]) is None


@pytest.mark.parametrize(
    "table",
    [
        np.zeros((2, LENGTH + 2), np.int64),
        np.zeros((2, LENGTH + 3), np.int32),
        np.zeros(LENGTH + 2, np.int32),
        np.full((1, LENGTH + 2), 60, np.int32),  # beyond the vocabulary
        np.full((1, LENGTH + 2), -1, np.int32),
    ],
)
def test_another_array_is_refused(tmp_path: Path, table: np.ndarray) -> None:
    np.save(tmp_path / "phrases.npy", table)
    with pytest.raises(LoraFtError, match="not a table of phrases"):
        Phrases.read(tmp_path / "phrases.npy", 60)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not an array"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "phrases.npy").write_bytes(content)
    with pytest.raises(LoraFtError, match="not a table of phrases"):
        Phrases.read(tmp_path / "phrases.npy", 60)

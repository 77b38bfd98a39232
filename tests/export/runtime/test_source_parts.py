"""Parts of a batch of sources: fewer rows at a time, the longer they are."""

from __future__ import annotations

import pytest

from lora_ft.export.runtime.source_parts import SCORES, rows_at_once, score_bytes


@pytest.mark.parametrize("length", [8, 512, 1024])
def test_as_many_rows_are_encoded_at_once_as_memory_allows(length: int) -> None:
    rows = rows_at_once(6, length)
    assert score_bytes(6, rows, length) <= SCORES < score_bytes(6, rows + 1, length)


def test_a_source_beyond_the_limit_is_encoded_alone() -> None:
    assert rows_at_once(16, 8192) == 1

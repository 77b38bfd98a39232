"""Packed rows hold every token once, in order."""

from __future__ import annotations

import pytest
import torch

from lora_ft.training.packed_rows import PackedRows


def rows_of(*lengths: int, width: int = 9) -> PackedRows:
    return PackedRows.of(torch.arange(width) < torch.tensor(lengths).unsqueeze(1))


def test_packing_leaves_out_padding() -> None:
    packed = rows_of(2, 1, 3, width=3).pack(torch.tensor([[1, 2, 9], [3, 9, 9], [4, 5, 6]]))
    assert packed[:6].tolist() == [1, 2, 3, 4, 5, 6]
    assert not packed[6:].any()


@pytest.mark.parametrize("lengths", [(9,), (1, 9, 5), (9, 9, 9), (8, 8, 8, 8), (0, 4)])
def test_spans_are_the_tokens_of_each_row(lengths: tuple[int, ...]) -> None:
    rows = rows_of(*lengths)
    values = torch.randn(len(lengths), 9, 2)
    packed = rows.pack(values)
    assert len(packed) == sum(lengths) + rows.filler
    assert len(packed) % 32 == 0
    for row, length, span in zip(values, lengths, rows.spans(), strict=True):
        assert torch.equal(packed[span], row[:length])

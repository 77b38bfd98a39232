"""Which shares make a pass together, and what the batch of them holds."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.batching import Encoded, collate
from lora_ft.multi_lora.joint_batches import MemberBatch, concatenate, plan_passes


def share(adapter: int, rows: int, source: int, target: int) -> MemberBatch:
    return MemberBatch(adapter, collate([Encoded([5] * (source - i % 2), [6] * target) for i in range(rows)], 0))


def cost(passes: list[list[MemberBatch]]) -> int:
    return sum(
        1000 + sum(one.rows for one in some) * sum(max(one.lengths[side] for one in some) for side in (0, 1))
        for some in passes
    )


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(2, 300), st.integers(2, 60)), min_size=1, max_size=6))
def test_passes_hold_every_share_once_and_cost_least(sizes: list[tuple[int, int, int]]) -> None:
    """Against every way to cut the shares, sorted by length, into passes."""
    shares = [share(adapter, *size) for adapter, size in enumerate(sizes)]
    found = plan_passes(shares, "cpu")
    assert sorted(one.adapter for some in found for one in some) == list(range(len(shares)))
    assert all([one.adapter for one in some] == sorted(one.adapter for one in some) for some in found)
    ordered = sorted(shares, key=lambda one: (one.lengths, one.adapter))
    ways = []
    for cuts in itertools.product([False, True], repeat=len(shares) - 1):
        passes = [[ordered[0]]]
        for cut, one in zip(cuts, ordered[1:], strict=True):
            if cut:
                passes.append([one])
            else:
                passes[-1].append(one)
        ways.append(cost(passes))
    assert cost(found) == min(ways)


def test_long_rows_do_not_make_short_ones_wait() -> None:
    shares = [share(0, 8, 24, 8), share(1, 8, 500, 100), share(2, 8, 24, 16)]
    assert [[one.adapter for one in some] for some in plan_passes(shares, "cpu")] == [[0, 2], [1]]
    assert len(plan_passes(shares, "cuda")) == 1  # a pass through the model costs a GPU more than these positions


def test_a_batch_is_padded_to_the_longest_of_all() -> None:
    batch = concatenate([share(0, 1, 3, 2), share(1, 2, 20, 9)], torch.device("cpu"))
    assert batch["input_ids"].shape == (3, 24) and batch["labels"].shape == (3, 16)
    assert batch["attention_mask"].sum(1).tolist() == [3, 20, 19]
    assert (batch["labels"] != -100).sum(1).tolist() == [2, 9, 9]
    assert batch["input_ids"][0, 3:].sum() == 0 and batch["decoder_input_ids"][0, 3:].sum() == 0

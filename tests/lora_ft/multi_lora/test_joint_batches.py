"""Distribution of shares over passes, and the batch of a pass."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.batching import Encoded, collate
from lora_ft.multi_lora.joint_batches import MemberBatch, concatenate, pack, plan_passes
from lora_ft.training.packed_rows import MULTIPLE, PackedRows


def share(adapter: int, rows: int, source: int, target: int) -> MemberBatch:
    return MemberBatch(adapter, collate([Encoded([5] * (source - i % 2), [6] * target) for i in range(rows)], 0))


def cost(passes: list[list[MemberBatch]]) -> int:
    total = 0
    for group in passes:
        length = sum(max(member.lengths[side] for member in group) for side in (0, 1))
        total += 1000 + length * sum(member.rows for member in group)
    return total


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(2, 300), st.integers(2, 60)), min_size=1, max_size=6))
def test_plan_passes_covers_every_share_once_at_the_lowest_cost(sizes: list[tuple[int, int, int]]) -> None:
    """Compare with every division of the shares, sorted by length, into passes."""
    shares = [share(adapter, *size) for adapter, size in enumerate(sizes)]
    planned = plan_passes(shares, "cpu")
    numbers = [[member.adapter for member in group] for group in planned]
    assert sorted(number for group in numbers for number in group) == list(range(len(shares)))
    assert all(group == sorted(group) for group in numbers)
    ordered = sorted(shares, key=lambda member: (member.lengths, member.adapter))
    costs = []
    for cuts in itertools.product([False, True], repeat=len(shares) - 1):
        passes = [[ordered[0]]]
        for cut, member in zip(cuts, ordered[1:], strict=True):
            if cut:
                passes.append([member])
            else:
                passes[-1].append(member)
        costs.append(cost(passes))
    assert cost(planned) == min(costs)


def test_long_and_short_rows_go_into_separate_passes() -> None:
    shares = [share(0, 8, 24, 8), share(1, 8, 500, 100), share(2, 8, 24, 16)]
    assert [[member.adapter for member in group] for group in plan_passes(shares, "cpu")] == [[0, 2], [1]]
    assert len(plan_passes(shares, "cuda")) == 1  # a pass through the model costs a GPU more than these positions


def test_joint_batch_is_padded_to_the_longest_share() -> None:
    batch = concatenate([share(0, 1, 3, 2), share(1, 2, 20, 9)], torch.device("cpu"))
    assert batch["input_ids"].shape == (3, 24) and batch["labels"].shape == (3, 16)
    assert batch["attention_mask"].sum(1).tolist() == [3, 20, 19]
    assert (batch["labels"] != -100).sum(1).tolist() == [2, 9, 9]
    assert batch["input_ids"][0, 3:].sum() == 0 and batch["decoder_input_ids"][0, 3:].sum() == 0


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(2, 70), st.integers(2, 40)), min_size=1, max_size=4))
def test_a_packed_batch_holds_the_tokens_of_each_share_and_a_row_without_loss(
    sizes: list[tuple[int, int, int]],
) -> None:
    shares = [share(adapter, *size) for adapter, size in enumerate(sizes)]
    batch, spans = pack(shares)
    masks = batch["attention_mask"], batch["decoder_attention_mask"]
    for mask, side, name in zip(masks, spans, ("input_ids", "labels"), strict=True):
        rows = PackedRows.of(mask)
        tokens = rows.pack(batch[name])
        assert rows.filler == 0 and len(tokens) == side[-1].stop
        assert all(span.start % MULTIPLE == span.stop % MULTIPLE == 0 for span in side)
        for member, span in zip(shares, side, strict=True):
            own = member.batch[name]
            real = own[member.batch["attention_mask"] == 1] if name == "input_ids" else own[own != -100]
            assert tokens[span][: len(real)].tolist() == real.tolist()
            assert set(tokens[span][len(real) :].tolist()) <= {0 if name == "input_ids" else -100}
            assert len(tokens[span]) - len(real) < MULTIPLE
    assert int((batch["labels"] != -100).sum()) == sum(int((s.batch["labels"] != -100).sum()) for s in shares)

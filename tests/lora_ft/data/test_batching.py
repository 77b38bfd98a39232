"""Batches: token ids within their limits, padding that the model ignores, and an order that needs little of it."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler
from transformers import T5Config, T5ForConditionalGeneration

from lora_ft.core.errors import LoraFtError
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.data.batching import Encoded, LengthSampler, collate, count_positions, encode, padding_share
from lora_ft.data.splits import Example
from lora_ft.tasks.lengths import Lengths
from tests.tiny import CONFIG


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Tokenizer:
    return Tokenizer(tiny_base / "tokenizer.json")


def example(prompt: str, target: str) -> Example:
    return Example(prompt, target, (target,), {})


def row(source: int, target: int) -> Encoded:
    return Encoded([*[5] * (source - 1), 1], [*[6] * (target - 1), 1])


def mixed(count: int) -> list[Encoded]:
    lengths = random.Random(0)
    return [row(lengths.randint(2, 200), lengths.randint(2, 40)) for _ in range(count)]


EXAMPLES = [example("a", "abc"), example("b", "abcdefgh"), example("c", "ab")]  # targets of 5, 10 and 4 tokens


def test_both_sides_end_with_the_closing_token(tokenizer: Tokenizer) -> None:
    rows = encode(EXAMPLES, tokenizer, Lengths(source=8, target=10), "train")
    assert [len(encoded.labels) for encoded in rows] == [5, 10, 4]
    assert all(encoded.input_ids[-1] == encoded.labels[-1] == 1 for encoded in rows)
    assert tokenizer.decode([encoded.labels for encoded in rows]) == ["abc", "abcdefgh", "ab"]


def test_prompts_are_cut_and_still_closed(tokenizer: Tokenizer) -> None:
    whole, cut = (
        encode([example("abcdefghijklmnop", "a")], tokenizer, Lengths(source=n), "train")[0].input_ids for n in (64, 8)
    )
    assert cut == [*whole[:7], 1] and len(whole) == 18


def test_long_targets_are_an_error_that_counts_them(tokenizer: Tokenizer) -> None:
    with pytest.raises(LoraFtError) as caught:
        encode(EXAMPLES, tokenizer, Lengths(target=4), "validation")
    assert caught.value.message.startswith("2 of 3 validation targets are longer than lengths.target = 4 tokens")
    assert "the longest has 10" in caught.value.message
    assert "lengths.target" in caught.value.remedy and "lengths.long_targets" in caught.value.remedy


def test_a_target_exactly_as_long_as_the_limit_is_whole(tokenizer: Tokenizer) -> None:
    rows = encode(EXAMPLES, tokenizer, Lengths(target=10), "train")
    assert rows == encode(EXAMPLES, tokenizer, Lengths(target=10, long_targets="cut"), "train")
    assert rows == encode(EXAMPLES, tokenizer, Lengths(target=10, long_targets="drop"), "train")


def test_long_targets_are_cut_with_their_closing_token(tokenizer: Tokenizer) -> None:
    whole = encode(EXAMPLES, tokenizer, Lengths(), "train")
    rows = encode(EXAMPLES, tokenizer, Lengths(target=5, long_targets="cut"), "train")
    assert [encoded.labels for encoded in rows] == [whole[0].labels, [*whole[1].labels[:4], 1], whole[2].labels]


def test_rows_of_long_targets_are_dropped(tokenizer: Tokenizer) -> None:
    whole = encode(EXAMPLES, tokenizer, Lengths(), "train")
    assert encode(EXAMPLES, tokenizer, Lengths(target=5, long_targets="drop"), "train") == [whole[0], whole[2]]


def test_a_batch_is_padded_to_multiples_of_eight_and_masked() -> None:
    batch = collate([row(9, 3), row(4, 8)], 0)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "input_ids": (2, 16),
        "attention_mask": (2, 16),
        "labels": (2, 8),
        "decoder_input_ids": (2, 8),
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["input_ids"][1].tolist() == [5, 5, 5, 1, *[0] * 12]
    assert batch["attention_mask"].tolist() == [[1] * 9 + [0] * 7, [1] * 4 + [0] * 12]
    assert batch["labels"][0].tolist() == [6, 6, 1, *[-100] * 5]


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=6))
def test_decoder_inputs_are_those_that_t5_makes_of_the_labels(lengths: list[tuple[int, int]]) -> None:
    model = T5ForConditionalGeneration(T5Config(**CONFIG | {"num_layers": 1, "num_decoder_layers": 1}))
    batch = collate([row(*pair) for pair in lengths], 0)
    assert torch.equal(batch["decoder_input_ids"], model._shift_right(batch["labels"]))
    assert torch.equal(batch["decoder_input_ids"], model.prepare_decoder_input_ids_from_labels(batch["labels"]))


def test_positions_are_counted_on_both_sides() -> None:
    assert count_positions(collate([row(9, 3), row(4, 8)], 0)) == (9 + 4 + 3 + 8, 2 * 16 + 2 * 8)


ROWS = st.lists(st.builds(row, st.integers(1, 90), st.integers(1, 20)), min_size=1, max_size=60)


@settings(max_examples=80, deadline=None)
@given(rows=ROWS, size=st.integers(1, 9), seed=st.integers(0, 2**32), epoch=st.integers(0, 99))
def test_an_epoch_visits_every_row_once_in_batches_of_like_length(
    rows: list[Encoded], size: int, seed: int, epoch: int
) -> None:
    sampler, again = LengthSampler(rows, size, seed), LengthSampler(rows, size, seed)
    sampler.set_epoch(epoch)
    again.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(rows))) and len(sampler) == len(rows)
    assert order == list(again) == list(sampler)
    # Cut into batches in this order, no two batches interleave in length: the short one must then be the last.
    widths = [
        [len(rows[i].input_ids) // 16 for i in order[start : start + size]] for start in range(0, len(rows), size)
    ]
    widths.sort(key=lambda batch: (min(batch), max(batch)))
    assert all(max(a) <= min(b) for a, b in itertools.pairwise(widths))


def test_epochs_and_seeds_differ_in_their_order() -> None:
    rows = mixed(64)
    sampler = LengthSampler(rows, 8, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler) and first != list(LengthSampler(rows, 8, seed=1))
    sampler.set_epoch(0)
    assert first == list(sampler)


def test_batches_are_not_ordered_by_length() -> None:
    rows = mixed(256)
    order = list(LengthSampler(rows, 8, seed=0))
    shortest = [min(len(rows[i].input_ids) // 16 for i in order[start : start + 8]) for start in range(0, 256, 8)]
    assert shortest != sorted(shortest) and shortest != sorted(shortest, reverse=True)


def test_the_short_batch_comes_last_also_behind_several_pools() -> None:
    rows = mixed(401)  # a pool of 200 batches, and one row more
    order = list(LengthSampler(rows, 2, seed=0))
    assert sorted(order) == list(range(401))
    widths = [len(rows[i].input_ids) // 16 for i in order]
    # Neighbours in a sorted pool are of like length; a shift by the odd row would pair strangers.
    assert sum(abs(a - b) for a, b in zip(widths[0:400:2], widths[1:400:2], strict=True)) < 20


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_several_processes_see_the_global_batches_of_one(processes: int) -> None:
    rows, size = mixed(64), 8
    order = list(LengthSampler(rows, size, seed=3))
    per_device = size // processes
    shards = [
        list(BatchSamplerShard(BatchSampler(LengthSampler(rows, size, seed=3), per_device, False), processes, rank))
        for rank in range(processes)
    ]
    together = [[i for batch in step for i in batch] for step in zip(*shards, strict=True)]
    assert together == [order[start : start + size] for start in range(0, 64, size)]


def test_the_order_by_length_pads_far_less_than_chance() -> None:
    rows = mixed(400)
    order = random.Random(1).sample(range(400), 400)
    counts = [count_positions(collate([rows[i] for i in order[start : start + 8]], 0)) for start in range(0, 400, 8)]
    by_chance = 1 - sum(real for real, _ in counts) / sum(everything for _, everything in counts)
    share = padding_share(rows, 8, 8, seed=0)
    assert 0 < share < by_chance / 3
    assert padding_share([row(16, 8)] * 10, 4, 4, seed=0) == 0

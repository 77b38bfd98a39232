"""Which tasks may be packed, with a clear word to the others, and what fits into memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.multi_lora.planner import (
    MemoryNeed,
    balanced_size,
    describe_groups,
    group_memory,
    plan_groups,
    require_groupable,
)
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from lora_ft.training.memory_estimates import FLAN, Batch, training_memory

MakeTask = Callable[..., Path]
PLAIN: dict[str, Any] = {"bf16": False, "checkpointing": False, "cpu": True}
SMALL = FLAN["small"]


def need(name: str, rows: int = 8, source: int = 64, target: int = 16, adapter: int = 344_064) -> MemoryNeed:
    return MemoryNeed(name, adapter, 8, Batch(rows, source, target))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"method": "full"}, "method = full"),
        ({"lora": {"use_dora": True}}, r"lora\.use_dora = True"),
        ({"lora": {"quantization": "4bit"}}, r"lora\.quantization = 4bit"),
        ({"lora": {"init_lora_weights": "pissa"}}, r"lora\.init_lora_weights = pissa"),
        ({"lora": {"trainable_token_indices": [3]}}, r"lora\.trainable_token_indices = \[3\]"),
        ({"lora": {"new_tokens": ["<a>"]}}, r"lora\.new_tokens = \['<a>'\]"),
        (
            {"lora": {"lora_dropout": 0.1}, "train": {"gradient_checkpointing": True}},
            r"train\.gradient_checkpointing = True",
        ),
        ({"train": {"base_dropout": 0.1}}, r"train\.base_dropout = 0\.1"),
        ({"train": {"optim": "adafactor"}}, r"train\.optim = adafactor"),
        ({"train": {"compile": "on"}}, r"train\.compile = on"),
        ({"train": {"report_to": ["wandb"]}}, r"train\.report_to = \['wandb'\]"),
    ],
)
def test_what_a_pack_cannot_do_exactly_is_refused(make_task: MakeTask, sections: dict[str, Any], said: str) -> None:
    tasks = [load_task(make_task(name="plain")), load_task(make_task(name="odd", **sections))]
    with pytest.raises(UsageError, match=rf"task 'odd': {said}: .*train it alone"):
        require_groupable(tasks)


def test_tasks_share_base_precision_and_checkpointing(make_task: MakeTask) -> None:
    first = load_task(make_task(name="one"))
    for key, sections in (
        ("base", {"base": "offline"}),
        ("train.precision", {"train": {"precision": "bf16"}}),
        ("train.gradient_checkpointing", {"train": {"gradient_checkpointing": True}}),
    ):
        other = load_task(make_task(name="two", **sections))
        with pytest.raises(UsageError, match=rf"share {key}: 'one' has .*, 'two' has .*train them apart"):
            require_groupable([first, other])


def test_names_are_distinct(make_task: MakeTask) -> None:
    task: Task = load_task(make_task())
    with pytest.raises(UsageError, match="two tasks are named 'tiny'"):
        require_groupable([task, task.model_copy()])


def test_a_pack_of_one_takes_what_training_alone_takes() -> None:
    one = need("a")
    assert group_memory(SMALL, [one], **PLAIN) == training_memory(
        SMALL, one.batch, rank=8, adapter=one.adapter, cpu=True
    )


def test_memory_grows_by_adapters_and_not_by_bases() -> None:
    few, many = (group_memory(SMALL, [need(str(i), rows=1) for i in range(count)], **PLAIN) for count in (1, 11))
    assert many.weights - few.weights == 4 * 10 * 344_064
    assert many.optimizer == 11 * few.optimizer


def test_packs_are_as_large_as_memory_allows_and_alike_in_length() -> None:
    needs = [need(f"{kind}{i}", source=source) for i in range(3) for kind, source in (("short", 32), ("long", 512))]
    room = group_memory(SMALL, [one for one in needs if one.name.startswith("long")], **PLAIN).total
    packs = plan_groups(SMALL, needs, room, **PLAIN, most=None)
    assert [pack.names for pack in packs] == [["long0", "long1", "long2"], ["short0", "short1", "short2"]]
    assert all(pack.total <= room for pack in packs)
    assert len(plan_groups(SMALL, needs, 10 * room, **PLAIN, most=None)) == 1
    assert [len(pack.names) for pack in plan_groups(SMALL, needs, 10 * room, **PLAIN, most=4)] == [4, 2]


def test_a_task_that_is_too_large_alone_is_tried_alone_and_said_so() -> None:
    packs = plan_groups(SMALL, [need("a"), need("b")], 10**6, **PLAIN, most=None)
    assert [pack.names for pack in packs] == [["a"], ["b"]]
    said = describe_groups(packs, 10**6)
    assert said[0] == "2 adapters on one base in 2 packs" and "more than there is" in said[1]


@pytest.mark.parametrize(
    ("count", "places", "most", "size"),
    [(16, 8, 100, 2), (1000, 8, 94, 63), (3, 8, 5, 1), (10, 4, 3, 3), (100, 1, 30, 25)],
)
def test_packs_that_train_at_a_time_are_alike(count: int, places: int, most: int, size: int) -> None:
    assert balanced_size(count, places, most) == size


@given(st.integers(1, 500), st.integers(1, 70), st.integers(1, 100))
def test_even_packs_need_no_more_rounds_than_full_ones(count: int, places: int, most: int) -> None:
    size = balanced_size(count, places, most)
    assert 1 <= size <= most
    assert -(-count // size) <= places * -(-count // (places * most))

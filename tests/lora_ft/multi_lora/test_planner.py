"""Tasks that a group cannot train are refused by setting and value, and groups fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    kept_states,
    plan_groups,
    require_groupable,
)
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from lora_ft.training.memory_estimates import FLAN, Batch, StepOptions, training_memory

MakeTask = Callable[..., Path]
PLAIN = StepOptions(cpu=True)
SMALL = FLAN["small"]


def need(name: str, rows: int = 8, source: int = 64, target: int = 16, adapter: int = 344_064) -> MemoryNeed:
    return MemoryNeed(name, adapter, 8, Batch(rows, source, target))


@pytest.mark.parametrize(
    ("sections", "message"),
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
def test_group_refuses_settings_that_would_change_a_result(
    make_task: MakeTask, sections: dict[str, Any], message: str
) -> None:
    tasks = [load_task(make_task(name="plain")), load_task(make_task(name="odd", **sections))]
    with pytest.raises(UsageError, match=rf"task 'odd': {message}: .*train it alone"):
        require_groupable(tasks)


def test_tasks_share_base_precision_and_checkpointing(make_task: MakeTask) -> None:
    first = load_task(make_task(name="one"))
    for key, sections in (
        ("base", {"base": "offline"}),
        ("train.precision", {"train": {"precision": "bf16"}}),
        ("train.gradient_checkpointing", {"train": {"gradient_checkpointing": True}}),
    ):
        second = load_task(make_task(name="two", **sections))
        with pytest.raises(UsageError, match=rf"share {key}, but 'one' has .*, 'two' has .*train them separately"):
            require_groupable([first, second])


def test_duplicate_task_names_are_refused(make_task: MakeTask) -> None:
    task: Task = load_task(make_task())
    with pytest.raises(UsageError, match="two tasks are named 'tiny'"):
        require_groupable([task, task.model_copy()])


def test_group_of_one_needs_the_memory_of_training_alone() -> None:
    first_need = need("a")
    assert group_memory(SMALL, [first_need], PLAIN) == training_memory(
        SMALL, first_need.batch, StepOptions(rank=8, adapter=first_need.adapter, cpu=True)
    )


def test_packed_rows_need_no_room_for_fragments_unless_one_adapter_has_dropout() -> None:
    packed, padded = replace(need("a"), packed=True), need("b")
    assert group_memory(SMALL, [packed] * 2, PLAIN) == group_memory(SMALL, [padded] * 2, StepOptions())
    assert group_memory(SMALL, [packed, padded], PLAIN) == group_memory(SMALL, [padded] * 2, PLAIN)


def test_memory_grows_with_adapters_only() -> None:
    small, large = (group_memory(SMALL, [need(str(i), rows=1) for i in range(count)], PLAIN) for count in (1, 11))
    assert large.weights - small.weights == 4 * 10 * 344_064
    assert large.optimizer == 11 * small.optimizer


def test_groups_fill_memory_with_tasks_of_similar_length() -> None:
    needs = [need(f"{kind}{i}", source=source) for i in range(3) for kind, source in (("short", 32), ("long", 512))]
    room = group_memory(SMALL, [first_need for first_need in needs if first_need.name.startswith("long")], PLAIN).total
    groups = plan_groups(SMALL, needs, room, PLAIN)
    assert [group.names for group in groups] == [["long0", "long1", "long2"], ["short0", "short1", "short2"]]
    assert all(group.total <= room for group in groups)
    assert len(plan_groups(SMALL, needs, 10 * room, PLAIN)) == 1
    assert [len(group.names) for group in plan_groups(SMALL, needs, 10 * room, PLAIN, 4)] == [4, 2]


def with_states(name: str, states: int, prompts: int, *, keeps: bool = True) -> MemoryNeed:
    return replace(need(name), prompts=prompts, states=states, keeps_states=keeps)


def test_groups_count_the_encoder_states_that_they_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ft.training.encoder_states.allowed_memory", lambda: 4_000_000)
    first, same, other = with_states("a", 100_000, 1), with_states("b", 100_000, 1), with_states("c", 50_000, 2)
    assert kept_states([first, same]) == 400_000
    assert kept_states([first, replace(other, keeps_states=False)]) == 600_000
    assert kept_states([first, replace(other, states=0)]) == 0
    assert kept_states([replace(each, packed=True) for each in (first, other)]) == 300_000
    assert kept_states([first, replace(other, packed=True)]) == 600_000
    assert kept_states([replace(each, keeps_states=False) for each in (first, other)]) == 0
    assert kept_states([with_states("d", 200_001, 3), other]) == 0  # more than a quarter of the memory
    alone = group_memory(SMALL, [first], PLAIN).total
    assert plan_groups(SMALL, [first], 10**12, PLAIN)[0].total == alone + 400_000
    pair = group_memory(SMALL, [first, other], PLAIN).total
    assert len(plan_groups(SMALL, [first, other], pair + 600_000, PLAIN)) == 1
    assert len(plan_groups(SMALL, [first, other], pair + 599_999, PLAIN)) == 2


def test_too_large_task_is_planned_alone_with_a_warning() -> None:
    groups = plan_groups(SMALL, [need("a"), need("b")], 10**6, PLAIN)
    assert [group.names for group in groups] == [["a"], ["b"]]
    lines = describe_groups(groups, 10**6)
    assert lines[0] == "2 adapters on one base in 2 groups" and "exceeds the available memory" in lines[1]


@pytest.mark.parametrize(
    ("count", "places", "max_size", "size"),
    [(16, 8, 100, 2), (1000, 8, 94, 63), (3, 8, 5, 1), (10, 4, 3, 3), (100, 1, 30, 25)],
)
def test_groups_that_train_at_the_same_time_are_balanced(count: int, places: int, max_size: int, size: int) -> None:
    assert balanced_size(count, places, max_size) == size


@given(st.integers(1, 500), st.integers(1, 70), st.integers(1, 100))
def test_balanced_groups_need_no_more_rounds_than_full_ones(count: int, places: int, max_size: int) -> None:
    size = balanced_size(count, places, max_size)
    assert 1 <= size <= max_size
    assert -(-count // size) <= places * -(-count // (places * max_size))

"""Check which tasks may share a base while they train, and plan groups that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lora_ft.core.errors import UsageError
from lora_ft.tasks.schema import Task
from lora_ft.training.encoder_states import distinct_prompts, states_bytes, states_fit
from lora_ft.training.memory_estimates import GIB, Batch, MemoryEstimate, Shape, StepOptions, training_memory
from lora_ft.training.plan import Plan
from lora_ft.training.prepared_data import PreparedData

_ALONE = "train it alone: `lora-ft train` with its file only"


def require_groupable(tasks: Sequence[Task]) -> None:
    """Raise UsageError for a task that a group would not train exactly as training alone does."""
    by_name: dict[str, Task] = {}
    for task in tasks:
        if by_name.setdefault(task.name, task) is not task:
            raise UsageError(
                f"two tasks are named '{task.name}', but tasks name their runs", "give each task a different name"
            )
        for key, value, reason in _unsupported(task):
            raise UsageError(f"task '{task.name}': {key} = {value}: {reason}", _ALONE)
        first = tasks[0]
        for key, value, shared in (
            ("base", task.base, first.base),
            ("train.precision", task.train.precision, first.train.precision),
            ("train.gradient_checkpointing", task.train.gradient_checkpointing, first.train.gradient_checkpointing),
        ):
            if value != shared:
                raise UsageError(
                    f"tasks of one pass share {key}, but '{first.name}' has {shared}, '{task.name}' has {value}",
                    f"set the same {key} for all with --set, or train them separately",
                )


def _unsupported(task: Task) -> list[tuple[str, object, str]]:
    """Return (key, value, reason) of settings that an adapter group does not support."""
    lora, train = task.lora, task.train
    trackers = [name for name in train.report_to if name != "tensorboard"]
    recomputed = train.gradient_checkpointing and lora.lora_dropout
    settings = [
        ("method", task.method, task.method != "lora", "an adapter group trains adapters on a frozen base"),
        ("lora.quantization", lora.quantization, lora.quantization, "the base of an adapter group is not quantized"),
        ("lora.use_dora", lora.use_dora, lora.use_dora, "DoRA's magnitudes depend on the base's weights"),
        (
            "lora.init_lora_weights",
            lora.init_lora_weights,
            lora.moves_base,
            "it changes the base that the adapters share",
        ),
        (
            "lora.trainable_token_indices",
            lora.trainable_token_indices,
            lora.trainable_token_indices,
            "trained tokens change the embedding that the adapters share",
        ),
        (
            "lora.new_tokens",
            lora.new_tokens,
            lora.new_tokens,
            "new tokens change the embedding that the adapters share",
        ),
        ("lora.start_from", lora.start_from, lora.start_from, "adapters of a group start from new weights"),
        (
            "train.base_dropout",
            train.base_dropout,
            train.base_dropout,
            "its random numbers would differ from those of training alone",
        ),
        ("train.distill", train.distill, train.distill, "an adapter group has no teacher"),
        (
            "train.gradient_checkpointing",
            train.gradient_checkpointing,
            recomputed,
            "with lora.lora_dropout it would draw other random numbers",
        ),
        ("train.optim", train.optim, train.optim == "adafactor", "the optimizer of an adapter group is AdamW"),
        ("train.compile", train.compile, train.compile == "on", "an adapter group is not compiled"),
        (
            "train.report_to",
            trackers,
            trackers,
            "such a tracker records one run per process; only tensorboard records all",
        ),
    ]
    return [(key, value, reason) for key, value, unsupported, reason in settings if unsupported]


@dataclass(frozen=True)
class MemoryNeed:
    """Memory needs of one task.

    Attributes:
        name: Name of the task.
        adapter: Number of parameters of its adapter.
        rank: Largest rank of its adapter.
        batch: Rows of a pass, and its longest source and target, in tokens.
        prompts: Hash of its distinct prompts, since tasks with the same prompts share encoder states.
        states: Numbers in the encoder states of these prompts, or 0 if they change.
        keeps_states: True if it would keep these states when trained alone.
        packed: See `packs_rows`.
    """

    name: str
    adapter: int
    rank: int
    batch: Batch
    prompts: int = 0
    states: int = 0
    keeps_states: bool = False
    packed: bool = False

    @classmethod
    def of(cls, data: PreparedData, plan: Plan) -> MemoryNeed:
        """Return the needs of a task with its rows."""
        lora, train = data.task.lora, data.task.train
        longest = [max(len(getattr(row, side)) for row in data.rows) for side in ("input_ids", "labels")]
        batch = Batch(train.per_device_train_batch_size, *longest)
        rank, prompts = max(lora.r, *lora.rank_pattern.values(), 1), hash(tuple(distinct_prompts(data.rows)))
        kept, packed = plan.keeps_states, packs_rows(data.task, plan)
        return cls(data.task.name, plan.trainable, rank, batch, prompts, plan.states, kept, packed)


def packs_rows(task: Task, plan: Plan) -> bool:
    """Return whether a task allows its group to train on packed rows. Dropout draws its numbers for padded rows."""
    return plan.packed and not task.lora.lora_dropout


def kept_states(needs: Sequence[MemoryNeed]) -> int:
    """Return the memory of the encoder states that an adapter group keeps, in bytes; 0 if each step runs the encoder.

    Its members share the base and its encoder, so it keeps the states of all or of none, and those of equal prompts
    once.
    """
    if not (all(need.states for need in needs) and any(need.keeps_states for need in needs)):
        return 0
    numbers, packed = sum({need.prompts: need.states for need in needs}.values()), all(need.packed for need in needs)
    return states_bytes(numbers, packed=packed) if states_fit(numbers, packed=packed) else 0


def group_memory(shape: Shape, needs: Sequence[MemoryNeed], options: StepOptions) -> MemoryEstimate:
    """Return the memory of an adapter group.

    The base is in memory once. Adapters, gradients and moments are all as wide as the widest. The activations are those
    of one pass over the rows of all members, padded to the longest. Packed rows need less: 18 adapters with 8 rows of
    JFLEG each had a peak of 10.9 GiB, 0.8 of the formula without the heap's growth.

    Args:
        shape: Shape of the base.
        needs: Needs of the members.
        options: Precision, gradient checkpointing and device; rank and adapter are taken from the needs.
    """
    batch = Batch(
        sum(need.batch.rows for need in needs),
        max(need.batch.source for need in needs),
        max(need.batch.target for need in needs),
    )
    rank, widest = max(need.rank for need in needs), max(need.adapter for need in needs)
    cpu = options.cpu and not all(need.packed for need in needs)
    return training_memory(shape, batch, replace(options, rank=rank, adapter=widest * len(needs), cpu=cpu))


@dataclass(frozen=True)
class PlannedGroup:
    """Tasks that train together.

    Attributes:
        names: Names of the tasks.
        total: Estimated memory, in bytes; see `lora_ft.training.memory_estimates`.
    """

    names: list[str]
    total: int


def plan_groups(
    shape: Shape, needs: Sequence[MemoryNeed], room: int, options: StepOptions, max_size: int | None = None
) -> list[PlannedGroup]:
    """Distribute tasks over groups, each as large as memory allows, with tasks of similar length together.

    Args:
        shape: Shape of the base.
        needs: Needs of the tasks.
        room: Available memory, in bytes.
        options: Precision, gradient checkpointing and device of the steps.
        max_size: Maximum number of adapters in a group; None for no limit.
    """

    def total(members: Sequence[MemoryNeed]) -> int:
        return group_memory(shape, members, options).total + kept_states(members)

    groups: list[list[MemoryNeed]] = []
    for need in sorted(needs, key=lambda need: (-need.batch.source, -need.batch.target)):
        has_place = bool(groups) and (max_size is None or len(groups[-1]) < max_size)
        if has_place and total([*groups[-1], need]) <= room:
            groups[-1].append(need)
        else:
            groups.append([need])
    order = {need.name: position for position, need in enumerate(needs)}
    return [
        PlannedGroup(sorted((need.name for need in members), key=order.__getitem__), total(members))
        for members in groups
    ]


def balanced_size(count: int, places: int, max_size: int) -> int:
    """Return the group size that finishes `count` tasks in the fewest rounds, with groups as equal as possible.

    Args:
        count: Number of tasks.
        places: Number of groups that train at the same time.
        max_size: Maximum number of adapters in a group.
    """
    rounds = math.ceil(count / (places * max_size))
    return math.ceil(count / (places * rounds))


def describe_groups(groups: Sequence[PlannedGroup], room: int) -> list[str]:
    """Return lines that describe planned groups; `room` is the available memory, in bytes."""
    count = sum(len(group.names) for group in groups)
    lines = [f"{count} adapters on one base in {len(groups)} group{'s' * (len(groups) > 1)}"]
    for number, group in enumerate(groups, 1):
        warning = " (exceeds the available memory; lower the task's batch size)" if group.total > room else ""
        lines.append(
            f"group {number}: {len(group.names)} adapter{'s' * (len(group.names) > 1)}, about {group.total / GIB:.1f} "
            f"of {room / GIB:.1f} GiB{warning}"
        )
    return lines

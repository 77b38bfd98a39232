"""Which tasks may share a base while they train, and how many of them fit into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_ft.core.errors import UsageError
from lora_ft.tasks.schema import Task
from lora_ft.training.memory_estimates import GIB, Batch, MemoryEstimate, Shape, training_memory

_ALONE = "train it alone: lora-ft train with its file only"


def require_groupable(tasks: Sequence[Task]) -> None:
    """Raise UsageError for a task that a pack would not train exactly as training alone does."""
    seen: dict[str, Task] = {}
    for task in tasks:
        if seen.setdefault(task.name, task) is not task:
            raise UsageError(f"two tasks are named '{task.name}', which names their runs", "rename one of them")
        for key, value, why in _obstacles(task):
            raise UsageError(f"task '{task.name}': {key} = {value}: {why}", _ALONE)
        first = tasks[0]
        for key, mine, others in (
            ("base", task.base, first.base),
            ("train.precision", task.train.precision, first.train.precision),
            ("train.gradient_checkpointing", task.train.gradient_checkpointing, first.train.gradient_checkpointing),
        ):
            if mine != others:
                raise UsageError(
                    f"tasks trained in one pass share {key}: '{first.name}' has {others}, '{task.name}' has {mine}",
                    f"set one {key} for all with --set, or train them apart",
                )


def _obstacles(task: Task) -> list[tuple[str, object, str]]:
    """(key, value, why) of what a pack cannot do."""
    lora, train = task.lora, task.train
    trackers = [name for name in train.report_to if name != "tensorboard"]
    recomputed = train.gradient_checkpointing and lora.lora_dropout
    found = [
        ("method", task.method, task.method != "lora", "a pack trains adapters on a frozen base"),
        ("lora.quantization", lora.quantization, lora.quantization, "a pack's base is not quantised"),
        ("lora.use_dora", lora.use_dora, lora.use_dora, "DoRA's magnitudes depend on the base's weights"),
        ("lora.init_lora_weights", lora.init_lora_weights, lora.moves_base, "it changes the base that others train on"),
        (
            "lora.trainable_token_indices",
            lora.trainable_token_indices,
            lora.trainable_token_indices,
            "trained tokens change the embedding that others train on",
        ),
        ("lora.new_tokens", lora.new_tokens, lora.new_tokens, "new tokens change the embedding that others train on"),
        ("lora.start_from", lora.start_from, lora.start_from, "adapters of a pack start fresh"),
        (
            "train.base_dropout",
            train.base_dropout,
            train.base_dropout,
            "its random numbers would not be those of training alone",
        ),
        (
            "train.gradient_checkpointing",
            train.gradient_checkpointing,
            recomputed,
            "with lora.lora_dropout it would draw other random numbers",
        ),
        ("train.optim", train.optim, train.optim == "adafactor", "a pack's optimizer is AdamW"),
        ("train.compile", train.compile, train.compile == "on", "a pack is not compiled"),
        ("train.report_to", trackers, trackers, "a tracker follows one run in a process; tensorboard follows all"),
    ]
    return [(key, value, why) for key, value, wrong, why in found if wrong]


@dataclass(frozen=True)
class MemoryNeed:
    """What one task asks of memory.

    Attributes:
        name: of the task.
        adapter, rank: parameters of its adapter, and its largest rank.
        batch: rows of a pass, and its longest source and target.
    """

    name: str
    adapter: int
    rank: int
    batch: Batch


def group_memory(
    shape: Shape, needs: Sequence[MemoryNeed], *, bf16: bool, checkpointing: bool, cpu: bool
) -> MemoryEstimate:
    """Memory of a pack: the base once; adapters, gradients and moments of all, each as wide as the widest; activations
    of a pass that all share, padded to the longest."""
    widest = max(need.adapter for need in needs)
    batch = Batch(
        sum(need.batch.rows for need in needs),
        max(need.batch.source for need in needs),
        max(need.batch.target for need in needs),
    )
    rank = max(need.rank for need in needs)
    return training_memory(
        shape, batch, rank=rank, adapter=widest * len(needs), bf16=bf16, checkpointing=checkpointing, cpu=cpu
    )


@dataclass(frozen=True)
class PlannedGroup:
    """Tasks that train together.

    Attributes:
        names: of them.
        total: bytes they take, by the formulas of `lora_ft.training.memory_estimates`.
    """

    names: list[str]
    total: int


def plan_groups(
    shape: Shape,
    needs: Sequence[MemoryNeed],
    room: int,
    *,
    bf16: bool,
    checkpointing: bool,
    cpu: bool,
    most: int | None,
) -> list[PlannedGroup]:
    """Packs for all tasks, tasks of like length together, each pack as large as memory allows.

    Args:
        shape: of the base.
        needs: of the tasks.
        room: bytes there are.
        bf16, checkpointing, cpu: as of `lora_ft.training.memory_estimates.training_memory`.
        most: adapters in a pack; None: any number.
    """

    def total(some: Sequence[MemoryNeed]) -> int:
        return group_memory(shape, some, bf16=bf16, checkpointing=checkpointing, cpu=cpu).total

    packs: list[list[MemoryNeed]] = []
    for need in sorted(needs, key=lambda one: (-one.batch.source, -one.batch.target)):
        fits = bool(packs) and (most is None or len(packs[-1]) < most) and total([*packs[-1], need]) <= room
        if fits:
            packs[-1].append(need)
        else:
            packs.append([need])
    order = {need.name: at for at, need in enumerate(needs)}
    return [PlannedGroup(sorted((need.name for need in pack), key=order.__getitem__), total(pack)) for pack in packs]


def balanced_size(count: int, places: int, most: int) -> int:
    """Tasks in a pack, where so many packs train at a time and none may be larger than `most`: in as few rounds as
    that allows, all packs are alike."""
    rounds = math.ceil(count / (places * most))
    return math.ceil(count / (places * rounds))


def describe_groups(packs: Sequence[PlannedGroup], room: int) -> list[str]:
    """What was chosen, in words; `room` are the bytes there are."""
    count = sum(len(pack.names) for pack in packs)
    said = [f"{count} adapters on one base in {len(packs)} pack{'s' * (len(packs) > 1)}"]
    for at, pack in enumerate(packs, 1):
        over = " (more than there is: the task's own batch is too large)" if pack.total > room else ""
        said.append(
            f"pack {at}: {len(pack.names)} adapter{'s' * (len(pack.names) > 1)}, about {pack.total / GIB:.1f} of "
            f"{room / GIB:.1f} GiB{over}"
        )
    return said

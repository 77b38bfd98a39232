"""Samples a second of packs of adapters against training them one after another.

    python -m benchmarks.studies.multi_lora [--base offline] [--adapters 1,2,4,8,16,32] [--json FILE]

Rows are random tokens of one length, 24 in and 16 out, then 256 in and 48 out; each adapter trains on 8 of them a step.
Alone is what `lora-ft train` does with one of the tasks. What memory is too small for, by the planner's own formula, is
left out and said so. Medians over steps; evaluation and saving are not among them.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.command import run_command
from lora_ft.core.files import write_json
from lora_ft.core.hardware import allowed_cpus
from lora_ft.core.memory import device_memory, keep_freed_memory
from lora_ft.core.progress import Silent
from lora_ft.data.batching import Encoded
from lora_ft.data.row_record import RowRecord
from lora_ft.data.splits import Splits
from lora_ft.doctor import environment
from lora_ft.models.bases import Base, find_base, load_tokenizer, quiet_transformers
from lora_ft.multi_lora.dashboard import SilentDashboard
from lora_ft.multi_lora.group import AdapterGroup
from lora_ft.multi_lora.group_member import MemberTrainer
from lora_ft.multi_lora.peft_adapter import make_adapter
from lora_ft.multi_lora.planner import MemoryNeed, memory
from lora_ft.multi_lora.snapshots import Snapshots
from lora_ft.multi_lora.stacked_weights import StackedWeights
from lora_ft.reports.terminal import console, table
from lora_ft.runs.run import TASK
from lora_ft.tasks.files import save_task
from lora_ft.tasks.schema import Task
from lora_ft.training.compute_dtype import ComputeDtype
from lora_ft.training.memory_estimates import Batch, Shape
from lora_ft.training.plan import Choices, Plan, make_plan, this_device
from lora_ft.training.prepared_data import PreparedData
from lora_ft.training.setup import task_trainer
from lora_ft.training.weights import open_base, open_weights

_WARM_UP = 2  # steps that are not counted
LENGTHS = ((24, 16), (256, 48))


@dataclass(frozen=True)
class Timing:
    """One pack.

    Attributes:
        precision: "fp32" or "bf16".
        source, target: tokens of every row.
        adapters: in the pack; 0: alone, as `lora-ft train` trains.
        samples_per_second: of all adapters together; None where it does not fit into memory.
        times: as many samples as alone in the same time.
    """

    precision: str
    source: int
    target: int
    adapters: int
    samples_per_second: float | None
    times: float | None


def measure(
    base: Base,
    precision: str,
    source: int,
    target: int,
    counts: Sequence[int],
    *,
    rows: int = 8,
    rank: int = 16,
    steps: int = 5,
    targets: str = "q,v",
) -> list[Timing]:
    """Timings of one task alone, then of packs of so many.

    Args:
        base: to train on.
        precision: "fp32" or "bf16".
        source, target: tokens of a row.
        counts: adapters in a pack.
        rows: of each adapter in a step.
        rank, targets: of LoRA.
        steps: that are timed.
    """
    device = this_device()
    if device == "cpu":
        torch.set_num_threads(allowed_cpus())
        keep_freed_memory()
    shape = (source, target, rows, rank, steps, targets)
    works = [_work(base, precision, number, *shape) for number in range(max(counts))]
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch, quiet_transformers():
        alone = rows / _alone(base, *works[0], Path(scratch))
        found = [Timing(precision, source, target, 0, round(alone, 2), 1.0)]
        for count in counts:
            need = MemoryNeed("", works[0][1].trainable, rank, Batch(rows, source, target))
            total = memory(
                Shape.of(base.config),
                [need] * count,
                bf16=precision == "bf16",
                checkpointing=False,
                cpu=device == "cpu",
            ).total
            if total > device_memory(device):
                found.append(Timing(precision, source, target, count, None, None))
                continue
            speed = count * rows / _packed(base, works[:count], Path(scratch, str(count)), steps, precision)
            found.append(Timing(precision, source, target, count, round(speed, 2), round(speed / alone, 2)))
    return found


def _work(
    base: Base, precision: str, number: int, source: int, target: int, rows: int, rank: int, steps: int, targets: str
) -> tuple[PreparedData, Plan]:
    """A task of random rows, and its plan."""
    train = {
        "max_steps": _WARM_UP + steps,
        "per_device_train_batch_size": rows,
        "precision": precision,
        "compile": "off",
        "report_to": [],
        "seed": number,
        "logging_steps": 1000,
    }
    task = Task.model_validate(
        {
            "name": f"pack-{number}",
            "base": base.name,
            "prompt": "{text}",
            "data": {"train": "none"},
            "train": train,
            "lora": {"r": rank, "lora_alpha": rank, "target_modules": targets},
        }
    )
    draw = random.Random(number)
    highest = base.config["vocab_size"] - 1
    drawn = [
        Encoded([draw.randint(3, highest) for _ in range(source)], [draw.randint(3, highest) for _ in range(target)])
        for _ in range(rows * (_WARM_UP + steps))
    ]
    plan = make_plan(task, base.config, drawn, 1, Choices(ComputeDtype(precision, "as asked"), False))
    splits = Splits([], [], [])
    return PreparedData(task, load_tokenizer(base.folder), splits, drawn, [], RowRecord.of(splits)), plan


def _alone(base: Base, material: PreparedData, plan: Plan, folder: Path) -> float:
    """Seconds of a step of `lora-ft train`."""
    task = material.task
    model = open_weights(task, plan, base, material.tokenizer, material.rows, folder)
    working = folder / "alone"
    working.mkdir()
    save_task(task, working / TASK)
    trainer, reporter = task_trainer(task, plan, model, material.tokenizer, material.rows, [], working, Silent())
    trainer.train()
    return statistics.median(seconds for _, seconds in reporter.steps[_WARM_UP:])


def _packed(base: Base, works: Sequence[tuple[PreparedData, Plan]], folder: Path, steps: int, precision: str) -> float:
    """Seconds of a step of a pack."""
    device = this_device()
    model = open_base(works[0][0].task, base, device).to(device)
    made = [make_adapter(model, material.task, base, material.rows, device) for material, _ in works]
    stack = StackedWeights(model, [adapter for adapter, _ in made])
    members = []
    for number, ((material, plan), (adapter, weights)) in enumerate(zip(works, made, strict=True)):
        stack.load(number, weights)
        # one step more than is taken, or the last one would end with the runs being written
        longer = replace(plan, steps=plan.steps + 1)
        members.append(MemberTrainer(material, longer, base, adapter, model, folder / material.task.name))
        members[-1].begin(None)
    pack = AdapterGroup(
        model, stack, members, Snapshots(folder / "snapshots"), bf16=precision == "bf16", board=SilentDashboard()
    )
    times = []
    for _ in range(_WARM_UP + steps):
        began = time.perf_counter()
        pack.step()
        times.append(time.perf_counter() - began)
    return statistics.median(times[_WARM_UP:])


def show(found: Sequence[Timing]) -> None:
    """Print the table."""
    made = table("rows", "precision", "adapters", "samples/s", "times as many")
    for one in found:
        speed = "does not fit" if one.samples_per_second is None else f"{one.samples_per_second:,.1f}"
        made.add_row(
            f"{one.source}+{one.target}",
            one.precision,
            str(one.adapters or "alone"),
            speed,
            "–" if one.times is None else f"{one.times:.2f}",
        )
    console().print(made)


def main(
    base: str = "offline",
    adapters: Annotated[str, typer.Option(help="Of the packs, with commas.")] = "1,2,4,8,16,32",
    rows: Annotated[int, typer.Option(help="Of each adapter in a step.")] = 8,
    rank: int = 16,
    targets: Annotated[str, typer.Option(help="Layers that are adapted.")] = "q,v",
    steps: Annotated[int, typer.Option(help="Steps that are timed.")] = 5,
    precision: Annotated[list[str], typer.Option(help="May be repeated.")] = ["fp32", "bf16"],  # noqa: B006
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure there.")] = None,
) -> None:
    """Measure and print it."""
    found_base, counts = find_base(base), [int(count) for count in adapters.split(",")]
    found: list[Timing] = []
    for kind in precision:
        for source, target in LENGTHS:
            found += measure(
                found_base, kind, source, target, counts, rows=rows, rank=rank, steps=steps, targets=targets
            )
    settings: dict[str, Any] = {"base": base, "rows": rows, "rank": rank, "targets": targets, "steps": steps}
    if json_file is not None:
        write_json(
            json_file,
            {
                "environment": environment(),
                "device": this_device(),
                **settings,
                "timings": [asdict(one) for one in found],
            },
        )
    show(found)


if __name__ == "__main__":
    run_command(main)

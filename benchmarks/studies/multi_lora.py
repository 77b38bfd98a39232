"""Compare adapter groups with training one adapter after another, in samples per second.

    python -m benchmarks.studies.multi_lora [--base offline] [--adapters 1,2,4,8,16,32] [--json FILE]

Rows are random tokens of a fixed length: 24 in and 16 out, then 256 in and 48 out. Each adapter trains on 8 rows per
step. "Alone" is `lora-ft train` with one of the tasks. A group is reported as not fitting if it exceeds the memory by
the planner's formula. Figures are medians over steps, without evaluation and saving.
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
from lora_ft.doctor import environment
from lora_ft.models.bases import Base, find_base, load_tokenizer, quiet_transformers
from lora_ft.multi_lora.dashboard import SilentDashboard
from lora_ft.multi_lora.group import AdapterGroup
from lora_ft.multi_lora.group_member import MemberTrainer
from lora_ft.multi_lora.peft_adapter import make_adapter
from lora_ft.multi_lora.planner import MemoryNeed, group_memory
from lora_ft.multi_lora.snapshots import Snapshots
from lora_ft.multi_lora.stacked_weights import StackedWeights
from lora_ft.reports.terminal import console, table
from lora_ft.tasks.schema import Task
from lora_ft.training.compute_dtype import ComputeDtype
from lora_ft.training.memory_estimates import Batch, Shape, StepOptions
from lora_ft.training.plan import Choices, Plan, make_plan, training_device
from lora_ft.training.prepared_data import PreparedData
from lora_ft.training.run_folder import RunFolder
from lora_ft.training.setup import build_trainer
from lora_ft.training.weights import open_base

_WARM_UP = 2  # steps that are not counted
LENGTHS = ((24, 16), (256, 48))


@dataclass(frozen=True)
class Settings:
    """Settings of the training, the same for every group.

    Attributes:
        precision: "fp32" or "bf16".
        source, target: Lengths of every row, in tokens.
        rows: Rows of each adapter in a step.
        rank, targets: Rank and adapted layers of the adapters.
        steps: Timed steps.
    """

    precision: str
    source: int
    target: int
    rows: int = 8
    rank: int = 16
    targets: str = "q,v"
    steps: int = 5


@dataclass(frozen=True)
class Timing:
    """Timing of one adapter group.

    Attributes:
        precision: "fp32" or "bf16".
        source, target: Lengths of every row, in tokens.
        adapters: Number of adapters in the group; 0 is one adapter alone, as `lora-ft train` trains it.
        samples_per_second: Speed of all adapters together; None if the group does not fit into memory.
        times: Ratio to `samples_per_second` of one adapter alone.
    """

    precision: str
    source: int
    target: int
    adapters: int
    samples_per_second: float | None
    times: float | None


def measure(base: Base, counts: Sequence[int], settings: Settings) -> list[Timing]:
    """Return the timing of one adapter alone, followed by timings of groups of `counts` adapters."""
    device = training_device()
    if device == "cpu":
        torch.set_num_threads(allowed_cpus())
        keep_freed_memory()
    works = [_prepare(base, number, settings) for number in range(max(counts))]
    kind = (settings.precision, settings.source, settings.target)
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch, quiet_transformers():
        alone = settings.rows / _seconds_alone(*works[0], Path(scratch))
        timings = [Timing(*kind, 0, round(alone, 2), 1.0)]
        for count in counts:
            batch = Batch(settings.rows, settings.source, settings.target)
            need = MemoryNeed("", works[0][1].trainable, settings.rank, batch, packed=works[0][1].packed)
            total = group_memory(
                Shape.of(base.config),
                [need] * count,
                StepOptions(bf16=settings.precision == "bf16", cpu=device == "cpu"),
            ).total
            if total > device_memory(device):
                timings.append(Timing(*kind, count, None, None))
                continue
            seconds = _seconds_in_group(base, works[:count], Path(scratch, str(count)), settings)
            speed = count * settings.rows / seconds
            timings.append(Timing(*kind, count, round(speed, 2), round(speed / alone, 2)))
    return timings


def _prepare(base: Base, number: int, settings: Settings) -> tuple[PreparedData, Plan]:
    """Return the data of a task of random rows, and its plan."""
    train = {
        "max_steps": _WARM_UP + settings.steps,
        "per_device_train_batch_size": settings.rows,
        "precision": settings.precision,
        "compile": "off",
        "report_to": [],
        "seed": number,
        "logging_steps": 1000,
    }
    task = Task.model_validate(
        {
            "name": f"adapter-{number}",
            "base": base.name,
            "prompt": "{text}",
            "data": {"train": "none"},
            "train": train,
            "lora": {"r": settings.rank, "lora_alpha": settings.rank, "target_modules": settings.targets},
        }
    )
    generator = random.Random(number)
    tokens = lambda count: [generator.randint(3, base.config["vocab_size"] - 1) for _ in range(count)]  # noqa: E731
    rows = [
        Encoded(tokens(settings.source), tokens(settings.target))
        for _ in range(settings.rows * (_WARM_UP + settings.steps))
    ]
    plan = make_plan(
        task, base.config, rows, 1, Choices(ComputeDtype(settings.precision, "as the study sets it"), False)
    )
    return PreparedData.of_rows(task, base, load_tokenizer(base.folder), rows), plan


def _seconds_alone(data: PreparedData, plan: Plan, folder: Path) -> float:
    """Return the median time of a step of `lora-ft train`, in seconds."""
    run = RunFolder.in_group(folder / "alone")
    run.record(data, plan)
    trainer, _, reporter = build_trainer(data, plan, run, Silent())
    trainer.train()
    return statistics.median(seconds for _, seconds in reporter.steps[_WARM_UP:])


def _seconds_in_group(
    base: Base, works: Sequence[tuple[PreparedData, Plan]], folder: Path, settings: Settings
) -> float:
    """Return the median time of a step of an adapter group, in seconds."""
    device = training_device()
    model = open_base(works[0][0].task, base, device).to(device)
    adapters = [make_adapter(model, data, device) for data, _ in works]
    stack = StackedWeights(model, [adapter for adapter, _ in adapters])
    members = []
    for number, ((data, plan), (adapter, weights)) in enumerate(zip(works, adapters, strict=True)):
        stack.load(number, weights)
        # One step more than is timed, since the last step writes the runs.
        longer = replace(plan, steps=plan.steps + 1)
        members.append(MemberTrainer(data, longer, adapter, model, folder / data.task.name))
        members[-1].begin(None)
    if works[0][1].packed:
        stack.pack(model)
    group = AdapterGroup(
        model,
        stack,
        members,
        Snapshots(folder / "snapshots"),
        bf16=settings.precision == "bf16",
        dashboard=SilentDashboard(),
    )
    times = []
    for _ in range(_WARM_UP + settings.steps):
        began = time.perf_counter()
        group.step()
        times.append(time.perf_counter() - began)
    return statistics.median(times[_WARM_UP:])


def show(timings: Sequence[Timing]) -> None:
    """Print the timings as a table."""
    rows = table("rows", "precision", "adapters", "samples/s", "speed-up")
    for timing in timings:
        speed = "does not fit" if timing.samples_per_second is None else f"{timing.samples_per_second:,.1f}"
        rows.add_row(
            f"{timing.source}+{timing.target}",
            timing.precision,
            str(timing.adapters or "alone"),
            speed,
            "–" if timing.times is None else f"{timing.times:.2f}",
        )
    console().print(rows)


def main(
    base: str = "offline",
    adapters: Annotated[str, typer.Option(help="Group sizes, separated by commas.")] = "1,2,4,8,16,32",
    rows: Annotated[int, typer.Option(help="Rows of each adapter per step.")] = 8,
    rank: int = 16,
    targets: Annotated[str, typer.Option(help="Adapted layers, separated by commas.")] = "q,v",
    steps: Annotated[int, typer.Option(help="Timed steps.")] = 5,
    precision: Annotated[list[str], typer.Option(help="fp32 or bf16; repeatable.")] = ["fp32", "bf16"],  # noqa: B006
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
) -> None:
    """Measure adapter groups and print a table."""
    counts = [int(count) for count in adapters.split(",")]
    timings: list[Timing] = []
    for kind in precision:
        for source, target in LENGTHS:
            timings += measure(find_base(base), counts, Settings(kind, source, target, rows, rank, targets, steps))
    settings: dict[str, Any] = {"base": base, "rows": rows, "rank": rank, "targets": targets, "steps": steps}
    if json_file is not None:
        write_json(
            json_file,
            {
                "environment": environment(),
                "device": training_device(),
                **settings,
                "timings": [asdict(timing) for timing in timings],
            },
        )
    show(timings)


if __name__ == "__main__":
    run_command(main)

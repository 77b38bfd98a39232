"""Estimate the cost of 1,000 adapters on 1, 8 and 64 devices, from measured groups and assumptions about other GPUs.

    python -m benchmarks.studies.scale [--results FILE]...    # files of `benchmarks.studies.multi_lora --json`

Writes docs/scale.md. On a device without measurements, a step of a group of n adapters with b rows each takes

    fixed + n * per_adapter + n * b * flops / (peak * share)

seconds. For a device with results of `benchmarks.studies.multi_lora`, its measured samples per second are used instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import refuse_other, run_command
from lora_ft.core.files import read_json, write_text
from lora_ft.multi_lora.planner import MemoryNeed, balanced_size, group_memory
from lora_ft.reports.markdown import table
from lora_ft.training.memory_estimates import FLAN, GIB, Batch, Shape, StepOptions

RESULTS = [Path(__file__).parents[1] / "results" / f"{name}.json" for name in ("groups", "groups-h100")]
PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
ADAPTERS, SAMPLES, DEVICES = 1000, 10_000, (1, 8, 64)
START = 30.0  # seconds from the start of a group's job to its first step: Python, torch, peft, loading the base
SNAPSHOT_EVERY = 60.0  # seconds
GPU_MEMORY = 80.0  # memory of a measured GPU, in GiB
# Dense bf16 operations per second, and memory in GiB, from NVIDIA's data sheets.
GPUS = {"L4": (121e12, 24), "A100": (312e12, 80), "H100": (989e12, 80)}
# Assumptions of the worst and the best case: share of the peak that a step reaches, fixed seconds per step for kernel
# launches, and seconds per adapter for Python.
ASSUMED = ((0.05, 0.060, 0.0006), (0.30, 0.020, 0.0002))


def step_flops(shape: Shape, source: int, target: int) -> float:
    """Return the operations for a row: the forward pass, and the backward pass to activations of the frozen base."""
    d, inner = shape.d_model, shape.inner
    feed_forward = (3 if shape.gated else 2) * d * shape.d_ff
    encoder = shape.num_layers * (4 * d * inner + feed_forward) + shape.num_decoder_layers * 2 * d * inner
    decoder = shape.num_decoder_layers * (6 * d * inner + feed_forward) + shape.vocab_size * d
    return 4.0 * (encoder * source + decoder * target)


def measured(timings: Sequence[dict[str, Any]], source: int, target: int, precision: str) -> Callable[[int], float]:
    """Return a function from group size to samples per second: interpolated, and constant beyond the largest size."""
    points = [
        (timing["adapters"], timing["samples_per_second"])
        for timing in timings
        if timing["adapters"]
        and timing["samples_per_second"]
        and timing["precision"] == precision
        and (timing["source"], timing["target"]) == (source, target)
    ]

    def speed(count: int) -> float:
        if count >= points[-1][0]:
            return float(points[-1][1])
        for (low, slow), (high, fast) in itertools.pairwise(points):
            if count <= high:
                return float(slow + (fast - slow) * (count - low) / (high - low))
        return float(points[0][1])

    return speed


def assumed(peak: float, flops: float, rows: int, assumptions: tuple[float, float, float]) -> Callable[[int], float]:
    """Return a function from group size to samples per second, for a device without measurements."""
    share, fixed, per_adapter = assumptions
    return lambda count: count * rows / (fixed + count * per_adapter + count * rows * flops / (peak * share))


def largest(shape: Shape, rank: int, batch: Batch, room: float, *, cpu: bool, bf16: bool = True) -> int:
    """Return the number of adapters on queries and values that fit into `room` bytes with the base."""
    layers = shape.num_layers + 2 * shape.num_decoder_layers
    need = MemoryNeed("", 2 * layers * rank * (shape.d_model + shape.inner), rank, batch)

    def fits(count: int) -> bool:
        return group_memory(shape, [need] * count, StepOptions(bf16=bf16, cpu=cpu)).total <= room

    count = 0
    while fits(count + 1) and count < ADAPTERS:
        count += 1
    return count


@dataclass(frozen=True)
class Cost:
    """Cost of training all adapters.

    Attributes:
        devices: Number of devices.
        group: Adapters in a group.
        groups: Number of groups.
        seconds: Total time.
    """

    devices: int
    group: int
    groups: int
    seconds: float

    @property
    def hours(self) -> float:
        """Return the total hours of all devices."""
        return self.devices * self.seconds / 3600


def cost(devices: int, max_group: int, speed: Callable[[int], float]) -> Cost:
    """Return the cost with groups as `--engine ray` plans them: of equal size, in as few rounds as memory allows."""
    group = balanced_size(ADAPTERS, devices, max_group)
    groups = math.ceil(ADAPTERS / group)
    rounds = math.ceil(groups / devices)
    return Cost(devices, group, groups, rounds * (START + group * SAMPLES / speed(group)))


def limit(max_group: int, speed: Callable[[int], float]) -> int:
    """Return the smallest number of devices at which doubling it gives a speed-up of less than 1.5."""
    return next(
        devices
        for devices in (2**power for power in range(20))
        if cost(devices, max_group, speed).seconds < 1.5 * cost(2 * devices, max_group, speed).seconds
    )


def page(measurements: Sequence[dict[str, Any]]) -> str:
    """Return the text of docs/scale.md, from results of `benchmarks.studies.multi_lora` with the same settings."""
    first, shape = measurements[0], FLAN["small"]
    lengths = dict.fromkeys((timing["source"], timing["target"]) for timing in first["timings"])
    (low, slow, slow_python), (high, fast, fast_python) = ASSUMED
    guessed = _guessed(measurements)
    return _TEXT.format(
        adapters=f"{ADAPTERS:,}",
        samples=f"{SAMPLES:,}",
        rank=first["rank"],
        targets=first["targets"],
        rows=first["rows"],
        devices=" and ".join(map(_device, measurements)),
        tables="\n\n".join(_table(measurements, shape, *pair) for pair in lengths),
        peaks=", ".join(f"{name} {peak / 1e12:.0f} T" for name, (peak, _) in guessed.items()),
        low=f"{low:.0%}",
        high=f"{high:.0%}",
        fast=f"{1000 * fast:.0f}",
        slow=f"{1000 * slow:.0f}",
        fast_python=f"{1000 * fast_python:g}",
        slow_python=f"{1000 * slow_python:g}",
        memory=_memory(first["rank"], first["rows"]),
        start=f"{START:.0f}",
        **_traffic(shape, first["rank"]),
    )


def _guessed(measurements: Sequence[dict[str, Any]]) -> dict[str, tuple[float, int]]:
    """Return the peak and the memory of GPUs without measurements, by name."""
    measured_gpus = " ".join(results["environment"]["gpus"] for results in measurements if results["device"] != "cpu")
    return {name: gpu for name, gpu in GPUS.items() if name not in measured_gpus.split()}


def _device(results: dict[str, Any]) -> str:
    machine = results["environment"]
    return f"{machine['cores'].split()[0]} cores of {machine['cpu']}" if results["device"] == "cpu" else machine["gpus"]


def _table(measurements: Sequence[dict[str, Any]], shape: Shape, source: int, target: int) -> str:
    """Return the table of costs on each device, for rows of one length."""
    rank, batch = measurements[0]["rank"], Batch(measurements[0]["rows"], source, target)
    devices = []
    for results in measurements:
        cpu, kinds = results["device"] == "cpu", dict.fromkeys(timing["precision"] for timing in results["timings"])
        curves = [measured(results["timings"], source, target, kind) for kind in kinds]
        best = max(curves, key=lambda speed: speed(ADAPTERS))
        gib = float(results["environment"]["memory"].split()[0]) if cpu else GPU_MEMORY
        devices.append(
            (f"{_device(results)} (speed measured)", [best], largest(shape, rank, batch, gib * GIB, cpu=cpu))
        )
    for name, (peak, size) in _guessed(measurements).items():
        speeds = [assumed(peak, step_flops(shape, source, target), batch.rows, how) for how in ASSUMED]
        devices.append((f"{name} (speed assumed)", speeds, largest(shape, rank, batch, size * GIB, cpu=False)))
    lines, ends = [], []
    for name, speeds, max_group in devices:
        ends.append(f"{name.partition(' (')[0]} {_range([limit(max_group, speed) for speed in speeds], '{:,}')}")
        alone = [cost(1, max_group, speed) for speed in speeds]
        for count in DEVICES:
            costs = [cost(count, max_group, speed) for speed in speeds]
            lines.append(
                (
                    f"{count} x {name}",
                    f"{costs[0].groups} of {costs[0].group}",
                    _range([speed(costs[0].group) for speed in speeds], "{:,.0f}"),
                    _range([estimate.seconds / 60 for estimate in costs], "{:,.0f}"),
                    _range([estimate.hours for estimate in costs], "{:,.1f}"),
                    _range(
                        [single.seconds / several.seconds for single, several in zip(alone, costs, strict=True)],
                        "{:,.0f}",
                    ),
                )
            )
    columns = ["", "groups", "samples/s of one device", "minutes", "device-hours", "speed-up over one"]
    end = f"Number of devices at which doubling gives a speed-up of less than 1.5: {', '.join(ends)}."
    return f"{source} + {target} tokens:\n\n{table(columns, lines, words=1)}\n\n{end}"


def _range(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _memory(rank: int, rows: int) -> str:
    lines = []
    for name, shape in FLAN.items():
        cells = [
            str(largest(shape, rank, Batch(rows, source, target), gib * GIB, cpu=False))
            for gib in (16, 24, 80)
            for source, target in ((24, 16), (256, 48))
        ]
        lines.append((name, *(f"{ADAPTERS:,} or more" if cell == str(ADAPTERS) else cell for cell in cells)))
    heads = [f"{gib} GiB, {lengths}" for gib in (16, 24, 80) for lengths in ("24 + 16", "256 + 48")]
    return table(["FLAN-T5", *heads], lines)


def _traffic(shape: Shape, rank: int) -> dict[str, str]:
    """Return the sizes and the rate of snapshots in the shared storage, as text."""
    layers = shape.num_layers + 2 * shape.num_decoder_layers
    adapter = 2 * layers * rank * (shape.d_model + shape.inner)
    snapshot = 12 * adapter
    return {
        "snapshot": f"{snapshot / 1e6:.0f}",
        "all_snapshots": f"{ADAPTERS * snapshot / 1e9:.1f}",
        "rate": f"{ADAPTERS * snapshot / SNAPSHOT_EVERY / 1e6:,.0f}",
        "every": f"{SNAPSHOT_EVERY:.0f}",
        "runs": f"{ADAPTERS * 4 * adapter / 1e9:.1f}",
    }


_TEXT = """\
# Estimated cost of {adapters} adapters

This page estimates the cost of `lora-ft train TASKS… --engine ray` on 1, 8 and 64 devices. It assumes {adapters}
adapters of FLAN-T5-small with rank {rank} on {targets}, {samples} samples each, and steps of {rows} rows. It is written
by `python -m benchmarks.studies.scale`. No training of this size was run.

- **Measured**: the speed of adapter groups (`python -m benchmarks.studies.multi_lora`) on {devices}. Speeds between
  measured group sizes are interpolated linearly. Beyond the largest measured size, the speed is assumed to be constant.
- **Assumed**: all figures of other GPUs. A step reaches {low} to {high} of the operations per second in NVIDIA's data
  sheets ({peaks}; bf16, dense). Kernel launches take another {fast} to {slow} ms. Python takes {fast_python} to
  {slow_python} ms for each adapter ({fast_python} ms was measured, on a CPU). These are not bounds.

`python -m benchmarks.studies.multi_lora --json FILE` measures your device.
`python -m benchmarks.studies.scale --results FILE` writes this page for it.

{tables}

Groups are planned as by `--engine ray`: adapters are divided evenly, in as few rounds as memory allows. A group takes
{start} s until its first step (assumed). Evaluation and waiting for machines are not included. To get the cost,
multiply device-hours by your price.

## Adapters that fit on one GPU

The table shows the largest group by the planner's formula (`lora_ft/multi_lora/planner.py`), in bf16 with {rows} rows
of each adapter. The base is stored once. Each parameter of an adapter takes 16 bytes. The activations of all rows take
most of the memory.

{memory}

Several groups on one GPU (`--gpus-per-group 0.5`) store the base several times and share the GPU. This helps if a step
is bound by Python or kernel launches, and not by arithmetic.

## Limits of scaling

- **Small groups.** With more devices, each group has fewer adapters, and a small group leaves its device partly idle.
  With perfect scaling, device-hours would stay equal.
- **One device per adapter.** An adapter is not divided, so more devices than adapters do not help.
- **Rounds.** A round takes as long as its longest group. Tasks of different lengths leave devices idle, unless
  `--group-size` is so small that each device trains several groups.
- **Start of a group.** Each group is a process that imports torch and opens the base. {start} s are little compared
  with hours, but most of the time if training takes a minute.
- **Snapshots.** A snapshot holds an adapter's weights and two moments: {snapshot} MB, or {all_snapshots} GB for all
  adapters. If all groups write one every {every} s, the shared storage receives {rate} MB/s. A group that is slowed
  down by this writes less often, since snapshots take at most 10 % of its time. The finished runs take {runs} GB.
- **Ray.** A group is one task and reports its state twice per second, which is far below Ray's limit. Ray's releases
  record 350 to 440 tasks per second (`many_tasks` of its release tests).
- **The first machine.** It reads and encodes all rows and sends each group its rows before training starts.
"""


def main(
    results: Annotated[list[Path], typer.Option(help="Files of `benchmarks.studies.multi_lora --json`.")] = RESULTS,
    out: Annotated[Path, typer.Option(help="Page to write.")] = PAGE,
) -> None:
    """Write the page."""
    refuse_other(out, "--out", lambda content: b"python -m benchmarks.studies.scale" in content)
    write_text(out, page([read_json(file) for file in results]))


if __name__ == "__main__":
    run_command(main)

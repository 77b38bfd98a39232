"""Estimate the cost of 1,000 adapters on 1, 8 and 64 devices, from measured groups and assumptions about other GPUs.

    python -m benchmarks.studies.scale [--results FILE]...    # files of `benchmarks.studies.multi_lora --json`

Writes docs/scale.md. A step of a group of n adapters with b rows each takes

    fixed + n * own + n * b * flops / (peak * share)

on a device without measurements. On a device with results of `benchmarks.studies.multi_lora`, its measured samples per
second are used instead.
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

RESULTS = [Path(__file__).parents[1] / "results" / f"{name}.json" for name in ("packs", "packs-h100")]
PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
ADAPTERS, SAMPLES, DEVICES = 1000, 10_000, (1, 8, 64)
START = 30.0  # seconds from a group's job to its first step: starting Python, torch and peft, loading the base
SNAPSHOT_EVERY = 60.0  # seconds
# bf16 products a second without sparsity, and GiB, from NVIDIA's data sheets.
GPU_MEMORY = 80.0  # memory of a measured GPU, in GiB
GPUS = {"L4": (121e12, 24), "A100": (312e12, 80), "H100": (989e12, 80)}
# Assumed worst and best case: share of the peak that a step reaches; fixed seconds of a step, for kernel launches; and
# seconds per adapter, for Python.
ASSUMED = ((0.05, 0.060, 0.0006), (0.30, 0.020, 0.0002))


def step_flops(shape: Shape, source: int, target: int) -> float:
    """Return the operations of a row: forward, and backward to the activations only, since the base is frozen."""
    d, inner = shape.d_model, shape.inner
    feed_forward = (3 if shape.gated else 2) * d * shape.d_ff
    encoder = shape.num_layers * (4 * d * inner + feed_forward) + shape.num_decoder_layers * 2 * d * inner
    decoder = shape.num_decoder_layers * (6 * d * inner + feed_forward) + shape.vocab_size * d
    return 4.0 * (encoder * source + decoder * target)


def measured(timings: Sequence[dict[str, Any]], source: int, target: int, precision: str) -> Callable[[int], float]:
    """Return samples per second by adapters in a group: measured, interpolated, and constant beyond the largest."""
    points = [
        (one["adapters"], one["samples_per_second"])
        for one in timings
        if one["adapters"]
        and one["samples_per_second"]
        and one["precision"] == precision
        and (one["source"], one["target"]) == (source, target)
    ]

    def speed(count: int) -> float:
        if count >= points[-1][0]:
            return float(points[-1][1])
        for (low, slow), (high, fast) in itertools.pairwise(points):
            if count <= high:
                return float(slow + (fast - slow) * (count - low) / (high - low))
        return float(points[0][1])

    return speed


def assumed(peak: float, flops: float, rows: int, how: tuple[float, float, float]) -> Callable[[int], float]:
    """Return samples per second by adapters in a group, for a device without measurements."""
    share, fixed, own = how
    return lambda count: count * rows / (fixed + count * own + count * rows * flops / (peak * share))


def largest(shape: Shape, rank: int, batch: Batch, room: float, *, cpu: bool, bf16: bool = True) -> int:
    """Return the number of adapters on queries and values that fit into `room` bytes together with the base."""
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
    """Cost of all adapters on some devices: adapters in a group, groups, total time in seconds."""

    devices: int
    group: int
    groups: int
    seconds: float

    @property
    def hours(self) -> float:
        """Hours of all devices together."""
        return self.devices * self.seconds / 3600


def cost(devices: int, most: int, speed: Callable[[int], float]) -> Cost:
    """Return the cost of groups as `--engine ray` plans them: evenly sized, in as few rounds as memory allows."""
    group = balanced_size(ADAPTERS, devices, most)
    groups = math.ceil(ADAPTERS / group)
    rounds = math.ceil(groups / devices)
    return Cost(devices, group, groups, rounds * (START + group * SAMPLES / speed(group)))


def limit(most: int, speed: Callable[[int], float]) -> int:
    """Return the number of devices from which doubling them is less than 1.5 times as fast."""
    return next(
        devices
        for devices in (2**power for power in range(20))
        if cost(devices, most, speed).seconds < 1.5 * cost(2 * devices, most, speed).seconds
    )


def page(measurements: Sequence[dict[str, Any]]) -> str:
    """Return the text of docs/scale.md, from results of `benchmarks.studies.multi_lora` with the same settings."""
    found, shape = measurements[0], FLAN["small"]
    lengths = dict.fromkeys((one["source"], one["target"]) for one in found["timings"])
    (low, slow, much), (high, fast, little) = ASSUMED
    guessed = _guessed(measurements)
    return _TEXT.format(
        adapters=f"{ADAPTERS:,}",
        samples=f"{SAMPLES:,}",
        rank=found["rank"],
        targets=found["targets"],
        rows=found["rows"],
        devices=" and ".join(map(_device, measurements)),
        tables="\n\n".join(_table(measurements, shape, *pair) for pair in lengths),
        peaks=", ".join(f"{name} {peak / 1e12:.0f} T" for name, (peak, _) in guessed.items()),
        low=f"{low:.0%}",
        high=f"{high:.0%}",
        fast=f"{1000 * fast:.0f}",
        slow=f"{1000 * slow:.0f}",
        little=f"{1000 * little:g}",
        much=f"{1000 * much:g}",
        memory=_memory(found["rank"], found["rows"]),
        start=f"{START:.0f}",
        **_traffic(shape, found["rank"]),
    )


def _guessed(measurements: Sequence[dict[str, Any]]) -> dict[str, tuple[float, int]]:
    """Return peak and memory of the GPUs without measurements, by name."""
    seen = " ".join(found["environment"]["gpus"] for found in measurements if found["device"] != "cpu")
    return {name: gpu for name, gpu in GPUS.items() if name not in seen.split()}


def _device(found: dict[str, Any]) -> str:
    machine = found["environment"]
    return f"{machine['cores'].split()[0]} cores of {machine['cpu']}" if found["device"] == "cpu" else machine["gpus"]


def _table(measurements: Sequence[dict[str, Any]], shape: Shape, source: int, target: int) -> str:
    """Return the table of costs on each device, for rows of one length."""
    rank, batch = measurements[0]["rank"], Batch(measurements[0]["rows"], source, target)
    ways = []
    for found in measurements:
        cpu, kinds = found["device"] == "cpu", dict.fromkeys(one["precision"] for one in found["timings"])
        curves = [measured(found["timings"], source, target, kind) for kind in kinds]
        best = max(curves, key=lambda speed: speed(ADAPTERS))
        gib = float(found["environment"]["memory"].split()[0]) if cpu else GPU_MEMORY
        ways.append((f"{_device(found)} (speed measured)", [best], largest(shape, rank, batch, gib * GIB, cpu=cpu)))
    for name, (peak, size) in _guessed(measurements).items():
        speeds = [assumed(peak, step_flops(shape, source, target), batch.rows, how) for how in ASSUMED]
        ways.append((f"{name} (speed assumed)", speeds, largest(shape, rank, batch, size * GIB, cpu=False)))
    lines, ends = [], []
    for name, speeds, most in ways:
        ends.append(f"{name.partition(' (')[0]} {_range([limit(most, speed) for speed in speeds], '{:,}')}")
        alone = [cost(1, most, speed) for speed in speeds]
        for count in DEVICES:
            costs = [cost(count, most, speed) for speed in speeds]
            lines.append(
                (
                    f"{count} x {name}",
                    f"{costs[0].groups} of {costs[0].group}",
                    _range([speed(costs[0].group) for speed in speeds], "{:,.0f}"),
                    _range([one.seconds / 60 for one in costs], "{:,.0f}"),
                    _range([one.hours for one in costs], "{:,.1f}"),
                    _range([one.seconds / two.seconds for one, two in zip(alone, costs, strict=True)], "{:,.0f}"),
                )
            )
    columns = ["", "groups", "samples/s of one device", "minutes", "device-hours", "times as fast as one"]
    end = f"Number of devices from which doubling them is less than 1.5 times as fast: {', '.join(ends)}."
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
# What {adapters} adapters cost, on paper

This page estimates `lora-ft train TASKS… --engine ray` on 1, 8 and 64 devices: {adapters} adapters of FLAN-T5-small, r
{rank} on {targets}, {samples} samples each, in steps of {rows} rows. It is written by
`python -m benchmarks.studies.scale`. Nothing here was run at this size.

- **Measured**: the speed of adapter groups (`python -m benchmarks.studies.multi_lora`) on {devices}. Sizes between the
  measured ones are interpolated linearly. No gain is assumed beyond the largest.
- **Assumed**: everything about other GPUs. A step reaches {low} to {high} of the operations a second in NVIDIA's
  data sheets ({peaks}; bf16, dense). It takes another {fast} to {slow} ms for kernel launches, and {little} to
  {much} ms of Python for each adapter ({little} was measured, on a CPU). These are not bounds.

`python -m benchmarks.studies.multi_lora --json FILE` measures your device.
`python -m benchmarks.studies.scale --results FILE` writes this page from it.

{tables}

Groups are those of `--engine ray`: adapters are divided evenly, in as few rounds as memory allows. A group takes
{start} s until its first step (assumed). Evaluation, and waiting for machines, are left out. Device-hours times your
price is the cost.

## What fits beside one base

Adapters in a group, by the planner's formula (`lora_ft/multi_lora/planner.py`), in bf16 with {rows} rows of each. The
base is held once. Each parameter of an adapter takes 16 bytes. The activations of all rows take most of the memory.

{memory}

Several groups on one GPU (`--gpus-per-group 0.5`) hold the base twice and share its speed. This helps where a step is
bound by Python or launches, not by arithmetic.

## Where it stops scaling

- **Groups get small.** More devices mean fewer adapters in each group, and a small group leaves a device idle. A
  perfect cluster would keep device-hours equal.
- **An adapter is not divided.** More devices than adapters are of no use.
- **Rounds end together.** A round takes as long as its longest group. Tasks of different lengths leave devices idle,
  unless `--group-size` makes groups so small that each device gets several.
- **Groups start.** Each is a process that imports torch and opens the base. {start} s are little in hours, and most
  of the time where training takes a minute.
- **Snapshots travel.** One is an adapter's weights and two moments: {snapshot} MB, {all_snapshots} GB for all. Written
  every {every} s by all at once, they bring {rate} MB/s to the shared storage. A group that this slows down writes less
  often, as snapshots take at most a tenth of its time. The finished runs are {runs} GB.
- **Ray itself is far from its limit.** A group is one task, and reports its state twice a second. Ray's releases record
  350 to 440 tasks a second (`many_tasks` of its release tests).
- **The first machine** reads and encodes all rows, and sends each group its share, before anything starts.
"""


def main(
    results: Annotated[list[Path], typer.Option(help="Files of `benchmarks.studies.multi_lora --json`.")] = RESULTS,
    out: Annotated[Path, typer.Option(help="The page.")] = PAGE,
) -> None:
    """Write the page."""
    refuse_other(out, "--out", lambda content: b"python -m benchmarks.studies.scale" in content)
    write_text(out, page([read_json(file) for file in results]))


if __name__ == "__main__":
    run_command(main)

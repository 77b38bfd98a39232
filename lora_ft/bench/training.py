"""Time three recipes that train the same adapter: as in tutorials, with less padding, and as `lora-ft train` does.

Each recipe of `lora_ft.bench.training_worker` trains in its own process. In a round, every recipe makes one pass over
the same rows: the first steps * batch rows of the task. The recipes take turns in a random order while the other
processes are paused. A drift of the machine's speed therefore affects all of them alike. The first pass of each recipe
is its warm-up and counts as part of its start.

The recipe `ours` sorts rows by length. A short measurement has few rows, so it pads more here than in real training.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_ft.bench import statistics as figures
from lora_ft.bench.subprocesses import Process
from lora_ft.bench.training_report import Recipe, TrainingReport
from lora_ft.bench.training_worker import RECIPES
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.progress import Progress, Silent
from lora_ft.data.batching import encode
from lora_ft.data.splits import load_splits, require
from lora_ft.doctor import environment
from lora_ft.models.adapters import count_parameters
from lora_ft.models.bases import find_base, load_tokenizer
from lora_ft.runs.run import TASK
from lora_ft.tasks.files import save_task
from lora_ft.tasks.schema import Task

USUAL = "usual"  # the recipe that speed-ups are relative to
_LIMIT = 7200.0  # seconds of a pass


@dataclass
class _Measurement:
    """Measurements of one recipe.

    Attributes:
        choice: First reply of its process, the fields of `Choice`.
        ready: Time until that reply, in seconds.
        first: Time of the warm-up pass, in seconds.
        passes: Replies of the measured passes.
    """

    choice: dict[str, Any]
    ready: float
    first: float
    passes: list[dict[str, Any]] = field(default_factory=list)


def _process(recipe: str, folder: Path, *numbers: int) -> Process:
    """Start the process of a recipe. It sees a single GPU, since transformers enlarges batches when it sees several."""
    command = [sys.executable, "-P", "-m", "lora_ft.bench.training_worker", recipe, str(folder), *map(str, numbers)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    return Process(f"the recipe {recipe}", command, {"CUDA_VISIBLE_DEVICES": visible.split(",")[0]})


def measure(task: Task, *, steps: int, rounds: int, seed: int = 0, progress: Progress | None = None) -> TrainingReport:
    """Time every recipe on the first steps * batch rows of a task.

    Args:
        task: All recipes use its adapter, lengths, batch size and optimizer; only `ours` uses the rest of `train`.
        steps: Optimizer steps of a pass. There is one pass for each round, and one to warm up.
        rounds: Measured passes.
        seed: Seed of the order of recipes and rows, of weights and dropout, and of the intervals.
        progress: Receives stages and notes.

    Raises:
        UsageError: The task, its data or its base is unusable, or it has too few rows.
        LoraFtError: A recipe ended early; the message has its name and the reason.
    """
    progress = progress or Silent()
    if steps < 1 or rounds < 1:
        raise UsageError(f"the measurement is empty (got {steps} steps, {rounds} rounds)", "pass at least 1 of each")
    began, clock = datetime.now(UTC), time.perf_counter()
    base = find_base(task.base)
    if base.notice:
        progress.note(base.notice)
    batch = task.train.per_device_train_batch_size * task.train.gradient_accumulation_steps
    _check_rows(task, base.folder, steps * batch)
    measurements = _run(task, steps, rounds, seed, progress)
    recipes = {name: _figures(measurements[name], measurements[USUAL], steps, seed) for name in RECIPES}
    first = measurements[USUAL].passes[0]
    trainable, parameters = count_parameters(base.config, task.lora if task.method == "lora" else None)
    return TrainingReport(
        task=task.name,
        base=base.name,
        lora=task.lora,
        lengths=task.lengths,
        trainable=trainable,
        parameters=parameters,
        batch=batch,
        steps=steps,
        samples=first["samples"],
        tokens=first["real"],
        rounds=rounds,
        seed=seed,
        environment=environment(),
        began=began.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - clock,
        recipes=recipes,
        warnings=figures.steadiness({name: recipe.spread for name, recipe in recipes.items()}),
    )


def _check_rows(task: Task, base: Path, required: int) -> None:
    """Raise UsageError if the task has fewer than `required` training rows, before any process is started."""
    examples = require(load_splits(task, ["train"]), "train", task)
    count = len(encode(examples, load_tokenizer(base, task.codec), task.lengths, "train"))
    if count < required:
        raise UsageError(
            f"task '{task.name}' has too few training rows for a pass (got {count:,}, required {required:,})",
            "measure fewer steps",
        )


def _run(task: Task, steps: int, rounds: int, seed: int, progress: Progress) -> dict[str, _Measurement]:
    """Start every recipe, one after another, and let them take turns."""
    order = random.Random(seed)
    measurements: dict[str, _Measurement] = {}
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch, contextlib.ExitStack() as running:
        workers: dict[str, Process] = {}
        progress.stage("starting", len(RECIPES))
        for name in order.sample(list(RECIPES), len(RECIPES)):
            folder = Path(scratch, name)
            folder.mkdir()
            save_task(task, folder / TASK)
            clock = time.perf_counter()
            workers[name] = running.enter_context(_process(name, folder, steps, rounds, seed))
            choice = workers[name].reply(_LIMIT)
            ready = time.perf_counter() - clock
            measurements[name] = _Measurement(choice, ready, workers[name].reply(_LIMIT)["seconds"])
            progress.advance(len(measurements), f"{name}: {time.perf_counter() - clock:.0f} s")
        progress.stage("timing", rounds * len(RECIPES))
        for i in range(rounds):
            for j, name in enumerate(order.sample(list(RECIPES), len(RECIPES))):
                workers[name].send("pass")
                reply = workers[name].reply(_LIMIT)
                measurements[name].passes.append(reply)
                progress.advance(
                    i * len(RECIPES) + j + 1, f"{name}: {reply['samples'] / reply['seconds']:.1f} samples/s"
                )
            _check_equal({name: measurements[name].passes[-1] for name in RECIPES})
    return measurements


def _check_equal(passes: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise LoraFtError unless all recipes trained on the same rows, since otherwise speeds cannot be compared."""
    work = {name: (reply["samples"], reply["real"]) for name, reply in passes.items()}
    if len(set(work.values())) > 1:
        counts = ", ".join(f"{name} {samples:,} rows of {real:,} tokens" for name, (samples, real) in work.items())
        raise LoraFtError(f"the recipes did not train on the same rows: {counts}", "report this as a bug")


def _figures(measurement: _Measurement, usual: _Measurement, steps: int, seed: int) -> Recipe:
    seconds = _values(measurement, "seconds")
    median = statistics.median(seconds)
    last = measurement.passes[-1]
    positions = _values(measurement, "positions")
    return Recipe(
        **measurement.choice,
        # The extra time of the first pass belongs to the start.
        start=measurement.ready + max(measurement.first - median, 0.0),
        seconds=seconds,
        loss=_values(measurement, "loss"),
        positions=positions,
        padding=1 - sum(_values(measurement, "real")) / sum(positions),
        seconds_per_step=median / steps,
        samples_per_second=last["samples"] / median,
        tokens_per_second=last["real"] / median,
        ratio=figures.ratio(_values(usual, "seconds"), seconds, seed),
        spread=figures.spread(seconds),
        memory=last["memory"],
        gpu_memory=last["gpu_memory"],
    )


def _values(measurement: _Measurement, key: str) -> list[Any]:
    return [reply[key] for reply in measurement.passes]

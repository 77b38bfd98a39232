"""Time three ways to train the same adapter: as in tutorials, with less padding, and as `lora-ft train` does it.

Each recipe (of `lora_ft.bench.training_worker`) trains in a process of its own. A round is one pass of every recipe
over the same rows, the first steps * batch of the task, in a random order of recipes. The others wait meanwhile, so
that a drift of the machine's speed affects all alike. The first pass of each is the warm-up and counts as its start.

`ours` sorts rows by length, and a short measurement has few rows, so it pads more here than in real training.
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
class _Taken:
    """Replies of a recipe's process so far, the time until it was ready and that of its first pass, in seconds."""

    choice: dict[str, Any]
    ready: float
    first: float
    passes: list[dict[str, Any]] = field(default_factory=list)


def _process(recipe: str, folder: Path, *numbers: int) -> Process:
    """Start the process of a recipe. It sees one GPU only, since transformers enlarges batches on several."""
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
        raise UsageError(f"{steps} steps in {rounds} rounds are nothing to measure", "give at least 1 of each")
    began, clock = datetime.now(UTC), time.perf_counter()
    base = find_base(task.base)
    if base.notice:
        progress.note(base.notice)
    batch = task.train.per_device_train_batch_size * task.train.gradient_accumulation_steps
    _check_rows(task, base.folder, steps * batch)
    taken = _run(task, steps, rounds, seed, progress)
    found = {name: _figures(taken[name], taken[USUAL], steps, seed) for name in RECIPES}
    first = taken[USUAL].passes[0]
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
        recipes=found,
        warnings=figures.steadiness({name: recipe.spread for name, recipe in found.items()}),
    )


def _check_rows(task: Task, base: Path, wanted: int) -> None:
    """Raise UsageError if there are too few rows, before anything is started."""
    examples = require(load_splits(task, ["train"]), "train", task)
    count = len(encode(examples, load_tokenizer(base, task.codec), task.lengths, "train"))
    if count < wanted:
        raise UsageError(
            f"task '{task.name}' has {count:,} training rows, a pass needs {wanted:,}", "measure fewer steps"
        )


def _run(task: Task, steps: int, rounds: int, seed: int, progress: Progress) -> dict[str, _Taken]:
    """Start every recipe, one after another, and let them take turns."""
    order = random.Random(seed)
    taken: dict[str, _Taken] = {}
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
            taken[name] = _Taken(choice, ready, workers[name].reply(_LIMIT)["seconds"])
            progress.advance(len(taken), f"{name}: {time.perf_counter() - clock:.0f} s")
        progress.stage("timing", rounds * len(RECIPES))
        for i in range(rounds):
            for j, name in enumerate(order.sample(list(RECIPES), len(RECIPES))):
                workers[name].send("pass")
                done = workers[name].reply(_LIMIT)
                taken[name].passes.append(done)
                progress.advance(i * len(RECIPES) + j + 1, f"{name}: {done['samples'] / done['seconds']:.1f} samples/s")
            _check_equal({name: taken[name].passes[-1] for name in RECIPES})
    return taken


def _check_equal(passes: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise LoraFtError unless all recipes trained on the same rows, since their speeds cannot be compared."""
    work = {name: (found["samples"], found["real"]) for name, found in passes.items()}
    if len(set(work.values())) > 1:
        said = ", ".join(f"{name} {samples:,} rows of {real:,} tokens" for name, (samples, real) in work.items())
        raise LoraFtError(f"the recipes did not train on the same rows: {said}", "report this as a bug")


def _figures(mine: _Taken, usual: _Taken, steps: int, seed: int) -> Recipe:
    seconds = _values(mine, "seconds")
    median = statistics.median(seconds)
    last = mine.passes[-1]
    positions = _values(mine, "positions")
    return Recipe(
        **mine.choice,
        start=mine.ready + max(mine.first - median, 0.0),  # the extra time of the first pass belongs to the start
        seconds=seconds,
        loss=_values(mine, "loss"),
        positions=positions,
        padding=1 - sum(_values(mine, "real")) / sum(positions),
        seconds_per_step=median / steps,
        samples_per_second=last["samples"] / median,
        tokens_per_second=last["real"] / median,
        ratio=figures.ratio(_values(usual, "seconds"), seconds, seed),
        spread=figures.spread(seconds),
        memory=last["memory"],
        gpu_memory=last["gpu_memory"],
    )


def _values(taken: _Taken, key: str) -> list[Any]:
    return [found[key] for found in taken.passes]

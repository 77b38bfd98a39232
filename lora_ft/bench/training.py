"""How fast three ways to train the same adapter are: as tutorials have it, with batches padded less, and ours.

Each recipe (of `lora_ft.bench.training_worker`) trains in a process of its own. A round is one pass of every recipe
over the same rows, the first steps * batch of the task, in a random order of recipes; the others wait meanwhile, so
that a machine whose speed drifts slows all of them alike. The first pass of each warms it up and counts as its start.

Ours sorts by length only among the rows that it is given, so in a short measurement it pads more than in a training.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from lora_ft.bench import statistics as figures
from lora_ft.bench.report import Interval
from lora_ft.bench.subprocesses import Process
from lora_ft.bench.training_worker import RECIPES
from lora_ft.bench.versioned_json import VERSION, Record, Strict
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.progress import Progress, Silent
from lora_ft.data.batching import encode
from lora_ft.data.splits import load_splits, require
from lora_ft.doctor import environment
from lora_ft.models.adapters import count_parameters
from lora_ft.models.bases import find_base, load_tokenizer
from lora_ft.reports.terminal import table
from lora_ft.runs.run import TASK
from lora_ft.tasks.files import save_task
from lora_ft.tasks.lora import Lora
from lora_ft.tasks.schema import Lengths, Task

USUAL = "usual"  # ratios are to it
_LIMIT = 7200.0  # seconds of a pass


class Recipe(Strict):
    """One recipe's figures. Lists hold a value for each round; tokens and positions are of sources and targets.

    Attributes:
        precision: "fp32" or "bf16" (autocast).
        compiled: whether torch.compile was used.
        base_dropout: rate inside the frozen base.
        why: the reasons of these choices, where the recipe chose.
        start: seconds from nothing to a steady pace: imports, base, rows, first allocations, compiling. Code that was
            compiled before is reused, as it is in training.
        seconds: of a pass.
        loss: mean of a pass, as the trainer logs it. Dropout raises it, and where gradients are accumulated
            transformers may log the sum over the micro-batches of a step.
        positions: of a pass, padding too.
        padding: share of all positions.
        seconds_per_step: median over the rounds.
        samples_per_second, tokens_per_second: of the median pass; padding is no token.
        ratio: how many times as fast as the usual recipe, within a round.
        spread: between rounds: the interquartile range of `seconds` over its median.
        memory: megabytes resident at most; None where the system does not tell.
        gpu_memory: megabytes allocated on the GPU at most, or None.
    """

    precision: str
    compiled: bool
    base_dropout: float
    why: list[str]
    start: float
    seconds: list[float]
    loss: list[float]
    positions: list[int]
    padding: float
    seconds_per_step: float
    samples_per_second: float
    tokens_per_second: float
    ratio: Interval
    spread: float
    memory: float | None
    gpu_memory: float | None


class TrainingReport(Record):
    """All of it.

    Attributes:
        version: of this format.
        task, base: their names.
        lora, lengths: of the task.
        trainable, parameters: how many are trained, of how many.
        batch: rows of an optimizer step.
        steps, samples, tokens: of a pass; the same for every recipe.
        rounds, seed: of the measurement.
        environment: facts by name.
        began: UTC, ISO 8601.
        seconds: it took.
        recipes: figures by name, the usual one first.
        warnings: what else a reader must know.
    """

    version: Literal[1] = VERSION  # type: ignore[assignment]
    task: str
    base: str
    lora: Lora
    lengths: Lengths
    trainable: int
    parameters: int
    batch: int
    steps: int
    samples: int
    tokens: int
    rounds: int
    seed: int
    environment: dict[str, str]
    began: str
    seconds: float
    recipes: dict[str, Recipe]
    warnings: list[str]

    def table(self) -> Table:
        """A column for each recipe, within 80 columns."""
        made = table(f"{self.steps} steps of {self.batch} rows", *self.recipes)
        for what, show in _SHOWN.items():
            cells = [show(recipe) for recipe in self.recipes.values()]
            if any(cells):
                made.add_row(what, *cells)
        return made


def _interval(ratio: Interval) -> str:
    digits = 2 if ratio.high < 10 else 1
    return f"{ratio.value:.{digits}f} [{ratio.low:.{digits}f}, {ratio.high:.{digits}f}]"


_SHOWN: dict[str, Callable[[Recipe], str]] = {
    "computes in": lambda recipe: f"{recipe.precision}{', compiled' * recipe.compiled}",
    "samples/s": lambda recipe: f"{recipe.samples_per_second:.2f}",
    "tokens/s": lambda recipe: f"{recipe.tokens_per_second:,.0f}",
    "padding": lambda recipe: f"{recipe.padding:.1%}",
    "seconds a step": lambda recipe: f"{recipe.seconds_per_step:.3f}",
    "times as fast [95 %]": lambda recipe: _interval(recipe.ratio),
    "spread of rounds": lambda recipe: f"{recipe.spread:.1%}",
    "seconds to start": lambda recipe: f"{recipe.start:.1f}",
    "MB at most": lambda recipe: "" if recipe.memory is None else f"{recipe.memory:,.0f}",
    "MB on the GPU": lambda recipe: "" if recipe.gpu_memory is None else f"{recipe.gpu_memory:,.0f}",
    "loss, first and last": lambda recipe: f"{recipe.loss[0]:.3f} {recipe.loss[-1]:.3f}",
}


@dataclass
class _Taken:
    """What a recipe's process has said so far; the seconds until it was ready, and those of its first pass."""

    choice: dict[str, Any]
    ready: float
    first: float
    passes: list[dict[str, Any]] = field(default_factory=list)


def _process(recipe: str, folder: Path, *numbers: int) -> Process:
    """A recipe in its process. It sees one GPU alone: on several, transformers would make larger batches."""
    command = [sys.executable, "-P", "-m", "lora_ft.bench.training_worker", recipe, str(folder), *map(str, numbers)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    return Process(f"the recipe {recipe}", command, {"CUDA_VISIBLE_DEVICES": visible.split(",")[0]})


def measure(task: Task, *, steps: int, rounds: int, seed: int = 0, progress: Progress | None = None) -> TrainingReport:
    """Time every recipe on the first steps * batch rows of a task.

    Args:
        task: its adapter, lengths, batch size and optimizer are every recipe's; the rest of `train` is ours alone.
        steps: optimizer steps of a pass, of which there are one for each round and one to warm up.
        rounds: passes that are measured.
        seed: of the order of recipes and rows, of weights and dropout, and of the intervals.
        progress: told what happens.

    Raises:
        UsageError: the task, its data or its base cannot be used, or it has too few rows.
        LoraFtError: a recipe ended before its time; the error names it and says why.
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
    """Find out that there are too few before anything is started."""
    examples = require(load_splits(task, ["train"]), "train", task)
    count = len(encode(examples, load_tokenizer(base, task.codec), task.lengths, "train"))
    if count < wanted:
        raise UsageError(
            f"task '{task.name}' has {count:,} training rows, a pass needs {wanted:,}", "measure fewer steps"
        )


def _run(task: Task, steps: int, rounds: int, seed: int, progress: Progress) -> dict[str, _Taken]:
    """Start every recipe, one after the other, and let them take turns."""
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
    """Speeds at unequal work say nothing."""
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
        start=mine.ready + max(mine.first - median, 0.0),  # what the first pass takes longer is still starting
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

"""The report of a training benchmark: one versioned JSON file."""

from __future__ import annotations

from typing import Literal

from lora_ft.bench.report import Interval
from lora_ft.bench.versioned_json import VERSION, Record, Strict
from lora_ft.tasks.lora import Lora
from lora_ft.tasks.schema import Lengths


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

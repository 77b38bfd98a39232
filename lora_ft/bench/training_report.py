"""The report of a training benchmark: one versioned JSON file."""

from __future__ import annotations

from typing import Literal

from lora_ft.bench.report import Interval
from lora_ft.bench.versioned_json import VERSION, Record, Strict
from lora_ft.tasks.lengths import Lengths
from lora_ft.tasks.lora import Lora


class Recipe(Strict):
    """Figures of one recipe. Lists hold one value for each round; tokens and positions include source and target.

    Attributes:
        precision: "fp32" or "bf16" (autocast).
        compiled: True if torch.compile was used.
        base_dropout: Dropout rate inside the frozen base.
        why: Reasons of these choices, if the recipe made them.
        start: Time to reach a steady pace, in seconds: imports, base, rows, first allocations, compilation. Cached
            compiled code is reused, as in training.
        seconds: Time of a pass.
        loss: Mean loss of a pass, as the trainer logs it. Dropout raises it. With accumulated gradients, transformers
            may log the sum over the micro-batches of a step.
        positions: Positions of a pass, including padding.
        padding: Share of padding in all positions.
        seconds_per_step: Median over the rounds.
        samples_per_second, tokens_per_second: Speed in the median pass; padding is not counted.
        ratio: Speed-up over the usual recipe, within a round.
        spread: Interquartile range of `seconds` over its median.
        memory: Peak resident memory, in megabytes; None if the system does not report it.
        gpu_memory: Peak memory allocated on the GPU, in megabytes, or None.
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
    """The report of a training benchmark.

    Attributes:
        version: Version of this format.
        task, base: Names of the task and of its base.
        lora, lengths: Settings of the task.
        trainable, parameters: Number of trained parameters, and of all parameters.
        batch: Rows of an optimizer step.
        steps, samples, tokens: Size of a pass, the same for every recipe.
        rounds, seed: Settings of the measurement.
        environment: Machine and versions, by name.
        began: Start, in UTC and ISO 8601.
        seconds: Duration.
        recipes: Figures by name, the usual recipe first.
        warnings: Problems with the measurement.
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

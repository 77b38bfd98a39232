"""Options that several commands share, so that a name means the same in every command."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_ft.core.user_paths import expanded


class SplitChoice(StrEnum):
    """A split of a task."""

    train = "train"
    validation = "validation"
    test = "test"


class EngineChoice(StrEnum):
    """Engine that trains adapter groups."""

    local = "local"
    ray = "ray"


class DtypeChoice(StrEnum):
    """Number format of a checkpoint's weights."""

    fp32 = "fp32"
    bf16 = "bf16"


TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="Task file (YAML), or the name of a recipe.")]

Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the task; repeatable. Example: --set train.seed=1"
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option("--task", metavar="TASK", help="Task file or recipe to use. Default: the model's own task."),
]
Base = Annotated[
    str | None, typer.Option("--base", metavar="BASE", help="Base model to use. Default: the recorded one.")
]
Adapter = Annotated[
    str | None, typer.Option("--adapter", metavar="NAME", help="Adapter of a bank, by name. Default: the base.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress and no notes.")]

GoOnFrom = Annotated[
    str | None, typer.Option("--from", metavar="ADAPTER", help="Start from the weights of a run or a PEFT folder.")
]
Split = Annotated[SplitChoice, typer.Option("--split", help="Split to read rows from.")]
ScoredSplit = Annotated[
    SplitChoice | None,
    typer.Option("--split", help="Split to score. Default: test, or validation without test rows."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Maximum number of rows, the first ones.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows generated together.")]
Metrics = Annotated[
    list[str],
    typer.Option("--metric", metavar="NAME", help="Metric to use instead of the task's; repeatable."),
]
Changed = Annotated[int, typer.Option("--rows", min=0, help="Number of most-changed rows to show.")]
Provider = Annotated[str, typer.Option("--provider", help="Device of a bundle: cpu, cuda or auto.")]

MaxRougeDrop = Annotated[
    float,
    typer.Option("--max-rouge-drop", min=0, help="Allowed drop of evaluate.metric, in points."),
]
ScoreRows = Annotated[int, typer.Option("--score-rows", min=1, help="Rows of the task used to measure that drop.")]
VerifyRows = Annotated[int, typer.Option("--verify-rows", min=1, help="Rows of the task compared with PyTorch.")]

MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Maximum answer length, in tokens.")]
DoSample = Annotated[
    bool | None, typer.Option("--do-sample/--greedy", help="Sample answers, or use the likeliest token.")
]
Temperature = Annotated[float | None, typer.Option("--temperature", help="Temperature of sampling.")]
TopK = Annotated[int | None, typer.Option("--top-k", min=0, help="Sample among the k likeliest tokens.")]
TopP = Annotated[float | None, typer.Option("--top-p", min=0, max=1, help="Sample within this share of probability.")]
NoRepeatNgramSize = Annotated[
    int | None, typer.Option("--no-repeat-ngram-size", min=0, help="Never repeat n-grams of this size.")
]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", help="Penalty on tokens already generated.")
]
Mbr = Annotated[int | None, typer.Option("--mbr", min=0, help="Samples to choose the most typical of; 0 is one.")]
SamplingSeed = Annotated[
    int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of sampling. Default: a new one per call.")
]

GENERATION = (
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "do_sample",
    "mbr",
    "temperature",
    "top_k",
    "top_p",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "seed",
    "prompt_lookup",
)
"""Parameters of commands that are generation options, by transformers' names."""


def generation_options(context: typer.Context) -> dict[str, Any]:
    """Return the generation options that the command line sets. The model sets all others."""
    return {name: context.params[name] for name in GENERATION if context.params.get(name) is not None}


def start_overrides(adapter: str | None) -> list[str]:
    """Return the task override that `--from ADAPTER` stands for, or an empty list without it."""
    if adapter is None:
        return []
    return [f"lora.start_from={json.dumps(str(expanded(adapter).resolve()))}"]

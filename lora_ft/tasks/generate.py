"""Section `generate` of a task: generation options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lora_ft.core.generation_options import BOUNDS
from lora_ft.tasks.fields import Real, Section, Seed, Whole


def _within(option: str) -> Any:
    """Return the bounds of a generation option, which all engines share."""
    low, high = BOUNDS[option]
    return Field(ge=low, le=high)


class Generate(Section):
    """Generation options, by the names of transformers' GenerationConfig.

    A missing key has the value of the base's generation_config.json, else the default named here. Options of a
    command take precedence over both.
    """

    max_new_tokens: Annotated[Whole, _within("max_new_tokens")] | None = None
    """Maximum answer length, in tokens. Default: lengths.target (transformers' own default is 20)."""
    min_new_tokens: Annotated[Whole, _within("min_new_tokens")] | None = None
    """Minimum answer length, in tokens. Default: 0."""
    num_beams: Annotated[Whole, _within("num_beams")] | None = None
    """Number of beams; 1 is greedy search. Default: 1."""
    length_penalty: Annotated[Real, _within("length_penalty")] | None = None
    """Exponent on the length of beams; above 0 favors longer answers. Default: 1.0."""
    do_sample: bool | None = None
    """Sample answers instead of taking the likeliest token. false leaves temperature, top_k, top_p and mbr unused.
    Default: false, with which they are errors."""
    temperature: Annotated[Real, _within("temperature")] | None = None
    """Temperature of sampling. Default: 1.0."""
    top_k: Annotated[Whole, _within("top_k")] | None = None
    """Number of likeliest tokens to sample from. Default: 50."""
    top_p: Annotated[Real, _within("top_p")] | None = None
    """Share of probability to sample from. Default: 1.0."""
    mbr: Annotated[Whole, _within("mbr")] | None = None
    """Answers to sample for each row; the one that agrees most with the others is returned. Default: 0, one sample."""
    utility: Literal["rouge1", "rougeL"] | None = None
    """Agreement of two answers for mbr, a ROUGE score of their tokens. Default: rouge1."""
    no_repeat_ngram_size: Annotated[Whole, _within("no_repeat_ngram_size")] | None = None
    """Size of n-grams that an answer never repeats; 0 allows all. Default: 0."""
    repetition_penalty: Annotated[Real, _within("repetition_penalty")] | None = None
    """Penalty on tokens already generated. Default: 1.0."""
    seed: Seed | None = None
    """Seed of sampling. Default: a new one for each call, which is reported. Scores use `evaluate.seed`."""
    constrained: bool = True
    """Restrict answers to the labels and to json_schema, if the task has them."""
    json_schema: dict[str, Any] | str | None = None
    """JSON schema that every answer follows: a file, or the schema itself. Needs the extra `constrained`."""

"""Section `card` of a task: entries of the model card that cannot be derived."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lora_ft.tasks.fields import Real, Section


class Card(Section):
    """Entries of the model card that cannot be derived, by the hub's names; see `lora_ft.publishing.model_card`."""

    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] | None = None
    """License of the adapter, by its identifier on the hub, e.g. apache-2.0 or cc-by-4.0."""
    language: list[Annotated[str, Field(pattern=r"^([a-z]{2,3}|code|multilingual)$")]] = []
    """Languages of the rows, as ISO 639 codes."""
    datasets: list[Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")]] = []
    """Names on the hub of the data sets that local rows come from. data.hub is added automatically."""
    pipeline_tag: Literal[
        "text-generation", "summarization", "translation", "question-answering", "text-classification"
    ] = "text-generation"
    """Task by the hub's name. The hub removed text2text-generation (huggingface.js#1590)."""
    tags: list[str] = []
    """Tags on the hub."""
    limits: str = ""
    """Unsuitable uses and known weaknesses of the model."""
    watts: Annotated[Real, Field(gt=0, le=1e9)] | None = None
    """Power of the machine during training, in watts, if it has no readable energy counter."""
    grams_per_kwh: Annotated[Real, Field(ge=0, le=1e6)] | None = None
    """CO2 of the electricity, in grams per kWh. Without it, the card states no emissions."""
    location: str | None = None
    """Origin of the electricity, e.g. "Quebec, Canada"."""

"""Key `judge` of the section `evaluate`: a model behind an OpenAI-compatible API that grades answers."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from lora_ft.core.errors import UsageError
from lora_ft.core.prompt import Prompt
from lora_ft.tasks.fields import Real, Section, Whole

PLACEHOLDERS = ("source", "answer", "target")
Scale = Annotated[list[Real], Field(min_length=2, max_length=2)]


class Judge(Section):
    """A model that grades answers. Sources and answers are sent to its URL."""

    url: str
    """Address of the API, up to /v1. /chat/completions is added."""
    model: str
    """Name of the model at that address."""
    prompt: str
    """Prompt with {answer}, and {source} and {target} if the judge should read them. It should ask for one number."""
    scale: Scale = [1, 5]
    """Lowest and highest grade. Scores are on the scale from 0 to 100."""
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable that holds the API key. Default: none is sent."""
    timeout: Annotated[Real, Field(gt=0, le=3600)] = 60
    """Seconds to wait for a reply before the request is repeated."""
    concurrency: Annotated[Whole, Field(ge=1, le=64)] = 4
    """Number of requests at a time."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            address = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            address = False
        if not address:
            raise ValueError("it is not an address; write one such as https://api.example.com/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("it holds more than an address; put a key into the variable that key_variable names")
        return value.rstrip("/")

    @field_validator("prompt")
    @classmethod
    def _is_a_template(cls, value: str) -> str:
        try:
            columns = Prompt(value).columns
        except UsageError as error:
            raise ValueError(str(error)) from error
        if "answer" not in columns or not set(columns) <= set(PLACEHOLDERS):
            raise ValueError(
                f"it must have {{answer}}, and may have {{source}} and {{target}} (got {', '.join(columns)}); write a "
                "brace as {{ or }}"
            )
        return value

    @field_validator("scale")
    @classmethod
    def _ascends(cls, value: list[float]) -> list[float]:
        if value[0] >= value[1]:
            raise ValueError(f"the lowest grade is not below the highest (got {value[0]:g}, {value[1]:g}); swap them")
        return value

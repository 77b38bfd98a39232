"""The request of POST /v1/generate: rows through the task's own prompt, with any option of generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lora_ft.core.consensus import UTILITIES
from lora_ft.core.constraint import SCHEMA
from lora_ft.core.generation_options import BOUNDS, Options
from lora_ft.serving.errors import RequestError
from lora_ft.serving.fields import (
    Choice,
    Field,
    Fields,
    Flag,
    Kind,
    ListOf,
    Number,
    Only,
    Schema,
    SingleOr,
    Text,
    Whole,
    wrong,
)
from lora_ft.serving.limits import Limits

_NAMES = tuple(field.name for field in fields(Options) if field.name != "constraint")  # it is made of json_schema
OPTIONS = (*_NAMES, SCHEMA)
_TOKEN = Whole(0, 2**31 - 1)
_TOKENS = ListOf(_TOKEN)
_KINDS: dict[str, Kind] = {
    "early_stopping": Only((True, False, "never"), 'give true, false or "never"'),
    "seed": Whole(0, 2**63 - 1),
    "bad_words_ids": ListOf(ListOf(_TOKEN, 1)),
    "suppress_tokens": _TOKENS,
    "begin_suppress_tokens": _TOKENS,
    "forced_bos_token_id": _TOKEN,
    "forced_eos_token_id": SingleOr(ListOf(_TOKEN, 1)),
    "allowed": ListOf(ListOf(_TOKEN, 1)),
    "do_sample": Flag(),
    "prompt_lookup": Flag(),
    "output_scores": Flag(),
    "utility": Choice(tuple(UTILITIES)),
    SCHEMA: Schema(),
}


class Row:
    """One row: an object with the columns of the prompt, or a text if the prompt has one column."""

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, {"type": "object"}]}

    def read(self, value: Any, path: str) -> str | dict[str, Any]:
        if not isinstance(value, str | dict):
            raise wrong(path, value, "a text or an object with columns")
        return value


@dataclass(frozen=True)
class TaskRequest:
    """A checked request.

    Attributes:
        model: Name of the model, as sent.
        rows: Texts or rows with columns.
        raw: True if the texts are finished prompts.
        stream: Send the answers piece by piece.
        label_scores: Return the probability of every label of a classification.
        options: Generation options, as sent.
        user: Name of the end user, or "".
    """

    model: str
    rows: tuple[str | dict[str, Any], ...]
    raw: bool
    stream: bool
    label_scores: bool
    options: Mapping[str, Any]
    user: str


def task_fields(limits: Limits) -> Fields:
    """Return the fields of the request."""
    return Fields(
        (
            Field("model", Text(512), "Name of a bundle or of an adapter, from GET /v1/models.", required=True),
            Field(
                "rows",
                SingleOr(ListOf(Row(), 1, limits.rows)),
                "Rows with the columns of the task's prompt, or texts if it has one column. One row needs no list.",
                required=True,
            ),
            Field("raw", Flag(), "The texts are finished prompts."),
            Field("stream", Flag(), "Send the answers piece by piece, as server-sent events."),
            Field("label_scores", Flag(), "Return the probability of every label of a classification."),
            Field("labels", ListOf(Text(), 1), "The only possible answers. Default: the task's labels, if any."),
            Field("user", Text(256), "Name of an end user, for the server's log."),
            *(Field(name, _kind(name, limits), f"Generation option {name}.") for name in OPTIONS),
        ),
        unknown=f"remove it; options are {', '.join(OPTIONS)}",
    )


def read_task_request(body: Any, limits: Limits) -> TaskRequest:
    """Return a checked request.

    Raises:
        RequestError: A field is unknown, missing, malformed or out of its limits.
    """
    values = task_fields(limits).read(body)
    options = {name: value for name, value in values.items() if name in (*OPTIONS, "labels")}
    if values.get("label_scores") and values.get("stream"):
        raise RequestError("label_scores and stream exclude each other", "leave one out", param="label_scores")
    request = TaskRequest(
        model=values["model"],
        rows=tuple(values["rows"]),
        raw=values.get("raw", False),
        stream=values.get("stream", False),
        label_scores=values.get("label_scores", False),
        options=options,
        user=values.get("user", ""),
    )
    check_room(len(request.rows), options, {}, limits, "rows")
    return request


def check_room(rows: int, options: Mapping[str, Any], defaults: Mapping[str, Any], limits: Limits, param: str) -> None:
    """Raise RequestError if the rows need more room than a request may take.

    Args:
        rows: Number of rows.
        options: Options of the request.
        defaults: Options of the task, which may have beams.
        limits: Limits of the server.
        param: Field at fault if no option is.
    """
    settings = {**defaults, **options}
    samples = settings.get("mbr") if settings.get("do_sample") else 1
    each = max(settings.get("num_beams") or 1, settings.get("num_return_sequences") or 1, samples or 1)
    if rows * each > limits.rows:
        name = next((name for name in ("num_beams", "num_return_sequences", "mbr") if name in options), param)
        raise RequestError(
            f"the request has too many rows (got {rows}, each with {each} beams or answers, at most "
            f"{limits.rows} in all)",
            "send several requests",
            param=name,
        )


def _kind(option: str, limits: Limits) -> Kind:
    """Return the kind of a generation option; the server's limits are narrower than the model's."""
    if option not in BOUNDS:
        return _KINDS[option]
    least, most = BOUNDS[option]
    room = {"max_new_tokens": limits.new_tokens, "num_return_sequences": limits.answers}
    room |= {"num_beams": limits.rows, "mbr": limits.rows}
    return Whole(least, room.get(option, int(most))) if isinstance(least, int) else Number(least, most)

"""The JSON files of a run, validated when they are read, since users may have edited, cut or exchanged them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import read_json
from lora_ft.tasks.faults import shown


class _Base(TypedDict):
    notice: str


class _Rows(TypedDict):
    train: int
    validation: int


class _Speed(TypedDict):
    seconds: float
    samples_per_second: float | None
    samples_per_second_second_half: float | None
    padding_share: float | None


class _Energy(TypedDict):
    joules: float
    source: str


class Metrics(TypedDict):
    """Keys of metrics.json that lora-ft reads back. The file has more."""

    base: _Base
    rows: _Rows
    steps: int
    global_batch: int
    trainable_parameters: int
    precision: str
    compiled: bool
    train_loss: float
    best_metric: float | None
    best_step: int | None
    speed: _Speed
    versions: dict[str, str]
    hardware: NotRequired[str]
    energy: NotRequired[_Energy | None]
    resumed_at: NotRequired[int | None]


class _Figure(TypedDict):
    mean: float
    low: float
    high: float


class _Model(TypedDict):
    scores: NotRequired[dict[str, _Figure]]
    rouge: NotRequired[dict[str, _Figure]]  # in files of version 1


class Scores(TypedDict):
    """Keys of scores-SPLIT.json that lora-ft reads back."""

    task: str
    rows: int
    scores: _Model
    baseline: _Model | None
    difference: dict[str, _Figure] | None
    warnings: list[str]
    how: NotRequired[dict[str, str]]


def score_values(model: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
    """Return mean and interval by name of the score, for one model of a scores file."""
    return model.get("scores") or model.get("rouge") or {}  # "rouge" in version 1


_AGAIN = "delete it, and evaluate the run again"
_METRICS, _SCORES = TypeAdapter(Metrics), TypeAdapter(Scores)


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the content of a run's metrics.json.

    Raises:
        LoraFtError: The file cannot be read, or lacks keys that training writes.
    """
    return _checked(path, _METRICS, "train the run again, or copy the file again")


def read_scores(path: Path) -> dict[str, Any]:
    """Return the content of a run's scores-SPLIT.json.

    Raises:
        LoraFtError: The file cannot be read, or lacks keys that `evaluate` writes.
    """
    value = _checked(path, _SCORES, _AGAIN)
    kinds = set(value["scores"].get("scores") or value["scores"].get("rouge") or ())
    for key in ("baseline", "difference"):
        beside = value[key] if key == "difference" or value[key] is None else value[key].get("scores", kinds)
        if value["baseline"] is not None and not kinds <= set(beside or ()):
            raise LoraFtError(f"{path}: {key} lacks scores that the model has", _AGAIN)
    return value


def _checked(path: Path, kind: TypeAdapter[Any], remedy: str) -> dict[str, Any]:
    value = read_json(path)
    try:
        kind.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        state = "is missing" if first["type"] == "missing" else f"is damaged (got {shown(first['input'])})"
        raise LoraFtError(f"{path}: {key[:80]} {state}", remedy) from error
    return value

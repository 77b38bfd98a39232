"""JSON files of a run, validated on reading, since users may have edited, truncated or swapped them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import read_json
from lora_ft.tasks.error_details import shown


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
    """Keys of metrics.json that lora-ft reads. The file has more."""

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
    """Keys of scores-SPLIT.json that lora-ft reads. The file has more."""

    task: str
    rows: int
    scores: _Model
    baseline: _Model | None
    difference: dict[str, _Figure] | None
    warnings: list[str]
    how: NotRequired[dict[str, str]]


def score_values(model: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
    """Return the mean and interval of each score by its name, for one model of a scores file."""
    return model.get("scores") or model.get("rouge") or {}  # "rouge" in version 1


_EVALUATE_AGAIN = "delete it, and evaluate the run again"
_METRICS, _SCORES = TypeAdapter(Metrics), TypeAdapter(Scores)


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the content of a run's metrics.json.

    Raises:
        LoraFtError: The file cannot be read, or is missing keys that `train` writes.
    """
    return _checked(path, _METRICS, "copy the file again, or train the run again")


def read_scores(path: Path) -> dict[str, Any]:
    """Return the content of a run's scores-SPLIT.json.

    Raises:
        LoraFtError: The file cannot be read, or is missing keys that `evaluate` writes.
    """
    content = _checked(path, _SCORES, _EVALUATE_AGAIN)
    names = set(score_values(content["scores"]))
    for key in ("baseline", "difference"):
        compared = content[key]
        if key == "baseline" and compared is not None:
            compared = compared.get("scores", names)
        if content["baseline"] is not None and not names <= set(compared or ()):
            raise LoraFtError(f"{path}: {key} is missing scores of the model", _EVALUATE_AGAIN)
    return content


def _checked(path: Path, schema: TypeAdapter[Any], remedy: str) -> dict[str, Any]:
    content = read_json(path)
    try:
        schema.validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        state = "is missing" if first["type"] == "missing" else f"is damaged (got {shown(first['input'])})"
        raise LoraFtError(f"{path}: {key[:80]} {state}", remedy) from error
    return content

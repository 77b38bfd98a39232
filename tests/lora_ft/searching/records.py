"""Records of searches without any training."""

from __future__ import annotations

from typing import Any

from lora_ft.runs.search_record import SearchRecord, SearchSettings, Trial


def make_record(*trials: Trial, metric: str = "rouge1", **settings: Any) -> SearchRecord:
    """Return the record of a search over `lora.r` and `train.learning_rate`."""
    space = {"lora.r": [2, 4, 8], "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    return SearchRecord(
        {"name": "demo"}, space, SearchSettings(**settings), metric, "rouge1", "fp32", "rows", "id", list(trials)
    )


def make_trial(number: int, *scores: float, state: str = "paused", **changes: Any) -> Trial:
    """Return a trial of 90 steps with its scores at the rungs 5, 22 and 90."""
    values: dict[str, Any] = {
        "settings": {"lora.r": 2 ** (number % 3 + 1), "train.learning_rate": 0.001 * (number % 9 + 1)},
        "seed": 42,
        "parameters": 100 * 2 ** (number % 3),
        "steps": 90,
        "step": [0, 5, 22, 90][len(scores)],
        "scores": list(scores),
        "curve": list(zip((5, 22, 90), scores, strict=False)),
    }
    return Trial(number, f"demo-{number:03}", **values | {"state": state} | changes)

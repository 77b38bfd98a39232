"""Provenance of a model, written into every graph as ONNX `metadata_props`.

A graph copied out of its folder still names its task, base, adapter, license and scores. The properties are appended to
the finished file, because protobuf reads two concatenated messages as one and joins their repeated fields. A graph of
gigabytes is therefore not read again, and the graph that was compared with PyTorch does not change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from lora_ft.core.printable import printable

LONGEST_NAME = 200  # characters
_LONGEST_JSON = 2000


@dataclass(frozen=True)
class Score:
    """A score of a model.

    Attributes:
        metric: Name of the metric.
        split: Rows that were scored: "test", "validation", or "gate" for the rows used to choose a precision.
        rows: Number of rows.
        mean: Value of the score.
        low: Lower bound of the 95% confidence interval, or None if unknown.
        high: Upper bound of the 95% confidence interval, or None if unknown.
    """

    metric: str
    split: str
    rows: int
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Provenance:
    """Provenance of a model, safe to publish: only names, no local paths. Unknown values are "".

    Attributes:
        task: Name of the task.
        base: Name of the base model.
        adapter: Name of the adapter.
        license: License of the adapter, as the Hub's license id.
        data: Names of the training data sets and files.
        scores: Scores of the model in float32.
    """

    task: str = ""
    base: str = ""
    adapter: str = ""
    license: str = ""
    data: Sequence[str] = ()
    scores: Sequence[Score] = ()


UNKNOWN = Provenance()


def bounded(text: str) -> str:
    """Return a name of unknown origin on one printable line of at most `LONGEST_NAME` characters."""
    line = " ".join(printable(text[: LONGEST_NAME + 1]).split())
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1]}…"


def scores_as_exported(provenance: Provenance, record: Mapping[str, Any]) -> list[Score]:
    """Return the scores of the weights as stored.

    Scores from training do not apply to quantized weights, which have the scores of the gate, if any.
    """
    precision, gate = record.get("precision", "fp32"), record.get("gate")
    if precision == "fp32":
        return list(provenance.scores)
    scores = [entry["score"] for entry in record.get("tradeoff", []) if entry["precision"] == precision]
    return [
        Score(gate["metric"], "gate", gate["rows"], score["mean"], score["low"], score["high"])
        for score in scores
        if gate
    ]


def properties(provenance: Provenance, record: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a model's graphs, without unknown values.

    Args:
        provenance: Provenance of the model.
        record: Content of the manifest. Its precision, gate and scores are used.
    """
    scores = [
        {k: v for k, v in asdict(score).items() if v is not None} for score in scores_as_exported(provenance, record)
    ]
    while len(text := json.dumps(scores)) > _LONGEST_JSON:
        scores.pop()
    values = {
        "task": bounded(provenance.task),
        "base": bounded(provenance.base),
        "adapter": bounded(provenance.adapter),
        "license": bounded(provenance.license),
        "precision": bounded(record.get("precision", "")),
        "scores": text if scores else "",
        "gate": json.dumps(record["gate"]) if "gate" in record else "",
    }
    return {key: value for key, value in values.items() if value}


def stamp(folder: Path, values: Mapping[str, str]) -> None:
    """Append properties to every graph below a folder.

    Args:
        folder: Folder with graphs written by lora-ft, which lack these properties.
        values: Values by key.
    """
    addition = onnx.ModelProto()
    for key, value in values.items():
        addition.metadata_props.add(key=key, value=value)
    for graph in sorted(folder.rglob("*.onnx")):
        with open(graph, "ab") as file:
            file.write(addition.SerializeToString())

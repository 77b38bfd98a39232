"""Where a model comes from, written into every graph as ONNX `metadata_props`.

A graph that was copied out of its folder still names its task, base, adapter, license and scores. The properties are
appended to the finished file: protobuf reads two messages written one after the other as one, with their repeated
fields joined. So a graph of gigabytes is not read again, and what was compared with PyTorch does not change.
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
        metric: Its name.
        split: Rows that were scored: "test", "validation", or "gate" for those that a precision was chosen by.
        rows: Their number.
        mean: The score.
        low, high: Its 95 % interval, or None where it is not known.
    """

    metric: str
    split: str
    rows: int
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from, in words that may leave this machine: names, no local paths. "" is unknown.

    Attributes:
        task: Name of the task.
        base: Name of the base model.
        adapter: Name of the adapter.
        license: License of the adapter, as the Hub abbreviates it.
        data: Names of the data sets and files it was trained on.
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
    """Return the scores that hold for the weights as they are stored.

    Rounded weights keep none of the training's scores; theirs are those of the gate, if there was one.
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
    """Return the metadata of a model's graphs; what is unknown is left out.

    Args:
        provenance: Of the model.
        record: The manifest's content: its precision, and how that was chosen.
    """
    scores = [
        {k: v for k, v in asdict(score).items() if v is not None} for score in scores_as_exported(provenance, record)
    ]
    while len(text := json.dumps(scores)) > _LONGEST_JSON:
        scores.pop()
    known = {
        "task": bounded(provenance.task),
        "base": bounded(provenance.base),
        "adapter": bounded(provenance.adapter),
        "license": bounded(provenance.license),
        "precision": bounded(record.get("precision", "")),
        "scores": text if scores else "",
        "gate": json.dumps(record["gate"]) if "gate" in record else "",
    }
    return {key: value for key, value in known.items() if value}


def stamp(folder: Path, values: Mapping[str, str]) -> None:
    """Append properties to every graph below a folder.

    Args:
        folder: Holds graphs that lora-ft wrote and that have none of these properties yet.
        values: Texts by key.
    """
    addition = onnx.ModelProto()
    for key, value in values.items():
        addition.metadata_props.add(key=key, value=value)
    for graph in sorted(folder.rglob("*.onnx")):
        with open(graph, "ab") as file:
            file.write(addition.SerializeToString())

"""Every graph names its origin, even when copied out of its folder."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from lora_ft.export.bundle.provenance import LONGEST_NAME, Provenance, Score, bounded, properties, stamp
from lora_ft.export.layouts import LAYOUTS
from lora_ft.export.precision import parse
from lora_ft.export.runtime import Generator
from tests.export.oracle import TEXTS, make_bundle

KNOWN = Provenance(
    task="titles",
    base="google/flan-t5-small",
    adapter="titles",
    license="apache-2.0",
    data=("user/rows",),
    scores=(Score("rougeL", "test", 200, 41.25, 40.0, 42.5),),
)


@pytest.mark.parametrize("layout", ["bundle", *LAYOUTS])
def test_every_graph_names_its_origin(checkpoint: Path, tmp_path: Path, layout: str) -> None:
    make_bundle(checkpoint, tmp_path / "out", layout=layout, triton=layout == "single", provenance=KNOWN)
    graphs = sorted((tmp_path / "out").rglob("*.onnx"))
    assert graphs
    for graph in graphs:
        pairs = [(entry.key, entry.value) for entry in onnx.load(graph, load_external_data=False).metadata_props]
        values = dict(pairs)
        assert len(values) == len(pairs)
        assert (values["task"], values["base"], values["adapter"]) == ("titles", "google/flan-t5-small", "titles")
        assert (values["license"], values["precision"]) == ("apache-2.0", "fp32")
        assert values["lora_ft_version"] and values["minimum_onnxruntime"]
        assert json.loads(values["scores"]) == [
            {"metric": "rougeL", "split": "test", "rows": 200, "mean": 41.25, "low": 40.0, "high": 42.5}
        ]
        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        assert session.get_modelmeta().custom_metadata_map == values
        onnx.checker.check_model(graph, full_check=True)


def test_metadata_may_contain_the_word_location(checkpoint: Path, tmp_path: Path) -> None:
    """Metadata are never mistaken for a reference to a file."""
    name = "location\n\x08location\x12\x0b/etc/passwd"
    make_bundle(checkpoint, tmp_path / "out", provenance=Provenance(task=name, base="location"))
    assert Generator.load(tmp_path / "out").generate(TEXTS[:1])
    values = {entry.key: entry.value for entry in onnx.load(tmp_path / "out" / "step.onnx").metadata_props}
    assert values["task"].startswith("location \\u0008location")


def test_rounded_weights_omit_scores_of_exact_weights(checkpoint: Path, tmp_path: Path) -> None:
    make_bundle(checkpoint, tmp_path / "out", precisions=[parse("int8")], provenance=KNOWN)
    values = {entry.key: entry.value for entry in onnx.load(tmp_path / "out" / "top_k.onnx").metadata_props}
    assert values["precision"] == "int8" and "scores" not in values


def test_rounded_weights_report_the_score_of_the_gate() -> None:
    estimate = {"mean": 40.0, "low": 39.0, "high": 41.0}
    gate = {"metric": "rougeL", "rows": 50, "max_drop": 0.5, "passed": True, "forced": False}
    tried = [{"precision": name, "score": estimate} for name in ("fp32", "int8")]
    values = properties(KNOWN, {"precision": "int8", "gate": gate, "tradeoff": tried})
    assert json.loads(values["scores"]) == [{"metric": "rougeL", "split": "gate", "rows": 50, **estimate}]
    assert json.loads(values["gate"]) == gate


def test_unknown_values_are_omitted() -> None:
    assert properties(Provenance(), {}) == {}


@pytest.mark.parametrize(
    "text, expected",
    [("a\nb\tc", "a b c"), ("\x1b[31mred", "\\u001b[31mred"), ("half \ud800", "half \\ud800"), ("ж" * 200, "ж" * 200)],
)
def test_foreign_names_become_one_printable_line(text: str, expected: str) -> None:
    assert bounded(text) == expected


def test_foreign_text_is_bounded(tmp_path: Path) -> None:
    scores = [Score(f"metric {i}", "test", 1, 0.0) for i in range(1000)]
    values = properties(Provenance(task="x" * 10**6, base="\x00" * 10**6, scores=scores), {})
    assert len(values["task"]) == len(values["base"]) == LONGEST_NAME and len(values["scores"]) <= 2000
    assert json.loads(values["scores"])[0]["metric"] == "metric 0"


def test_stamping_changes_only_metadata(tmp_path: Path) -> None:
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []), producer_name="somebody")
    onnx.helper.set_model_props(model, {"kept": "1"})
    onnx.save(model, tmp_path / "g.onnx")
    stamp(tmp_path, {"task": "titles"})
    stamped = onnx.load(tmp_path / "g.onnx")
    assert {entry.key: entry.value for entry in stamped.metadata_props} == {"kept": "1", "task": "titles"}
    del stamped.metadata_props[1:]
    assert stamped == model

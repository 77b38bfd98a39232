"""Precision search publishes the fastest precision that passes the quality gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.deployment import precision_search
from lora_ft.deployment.quality_gate import QualityGate
from lora_ft.export.precision import candidates
from lora_ft.export.runtime import Generator
from lora_ft.export_onnx import export_onnx
from lora_ft.runs.run import Run


def test_auto_tries_every_precision_and_records_the_results(tiny_run: Run, tmp_path: Path) -> None:
    exported = export_onnx(str(tiny_run.folder), tmp_path / "bundle", precision="auto", max_drop=100)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    names = [str(precision) for precision in candidates("cpu")]
    assert [row.precision for row in exported.tradeoff] == [row["precision"] for row in manifest["tradeoff"]] == names
    assert manifest["precision"] == exported.precision in names
    assert manifest["gate"] == {"metric": "rouge1", "rows": 6, "max_drop": 100, "passed": True, "forced": False}
    exact = exported.tradeoff[0]
    assert (exact.precision, exact.identical, exact.difference.mean) == ("fp32", 1.0, 0.0)
    assert all(set(row.milliseconds) == {1, 8} and min(row.milliseconds.values()) > 0 for row in exported.tradeoff)
    assert len(Generator.load(tmp_path / "bundle").generate(["say: abc"])) == 1


def test_auto_chooses_the_fastest_that_passes(tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"fp32": 5.0, "int8": 1.0, "w8": 3.0, "w4": 2.0, "int8-w8": 4.0, "int8-w4": 1.5, "int8-w4g128": 1.2}
    monkeypatch.setattr(
        precision_search,
        "milliseconds_per_token",
        lambda candidates, progress: [{1: speeds[str(c.precision)], 8: 1.0} for c in candidates],
    )
    failing = {"int8", "w4", "int8-w4", "int8-w4g128"}
    original = precision_search.PrecisionSelector._row

    def row(self: precision_search.PrecisionSelector, candidate, *arguments):  # type: ignore[no-untyped-def]
        tradeoff = original(self, candidate, *arguments)
        return precision_search.Tradeoff(**{**vars(tradeoff), "holds": tradeoff.precision not in failing})

    monkeypatch.setattr(precision_search.PrecisionSelector, "_row", row)
    assert export_onnx(str(tiny_run.folder), tmp_path / "bundle", precision="auto").precision == "w8"


def test_precision_with_a_large_loss_is_published_only_with_force(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QualityGate, "passes", lambda gate, change: False)
    with pytest.raises(
        LoraFtError, match=r"precision w4 loses too much quality: rouge1 changes by .* on 6 rows.*--force"
    ):
        export_onnx(str(tiny_run.folder), tmp_path / "bundle", precision="w4")
    assert list(tmp_path.iterdir()) == []
    export_onnx(str(tiny_run.folder), tmp_path / "bundle", precision="w4", force=True)
    gate = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["gate"]
    assert (gate["passed"], gate["forced"]) == (False, True)


def test_mixture_is_named_in_full(tiny_run: Run, tmp_path: Path) -> None:
    mixture = "encoder=int8,decoder=fp32,head=w4,embedding=fp32"
    exported = export_onnx(str(tiny_run.folder), tmp_path / "bundle", precision="encoder=int8,head=w4", max_drop=100)
    assert exported.precision == mixture


def test_auto_without_rows_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="auto needs rows of a task"):
        export_onnx(str(tiny_base), tmp_path / "bundle", precision="auto")
    export_onnx(str(tiny_base), tmp_path / "bundle", precision="int8")
    assert "gate" not in json.loads((tmp_path / "bundle" / "manifest.json").read_text())

"""Which precision is published: the fastest whose answers are as good."""

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


def test_auto_tries_every_precision_and_says_what_it_found(tiny_run: Run, tmp_path: Path) -> None:
    done = export_onnx(str(tiny_run.folder), tmp_path / "bundle", precision="auto", max_drop=100)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    tried = [str(precision) for precision in candidates("cpu")]
    assert [row.precision for row in done.tradeoff] == [row["precision"] for row in manifest["tradeoff"]] == tried
    assert manifest["precision"] == done.precision in tried
    assert manifest["gate"] == {"metric": "rouge1", "rows": 6, "max_drop": 100, "passed": True, "forced": False}
    exact = done.tradeoff[0]
    assert (exact.precision, exact.identical, exact.difference.mean) == ("fp32", 1.0, 0.0)
    assert all(set(row.milliseconds) == {1, 8} and min(row.milliseconds.values()) > 0 for row in done.tradeoff)
    assert len(Generator.load(tmp_path / "bundle").generate(["say: abc"])) == 1


def test_auto_takes_the_fastest_that_holds(tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"fp32": 5.0, "int8": 1.0, "w8": 3.0, "w4": 2.0, "int8-w8": 4.0, "int8-w4": 1.5, "int8-w4g128": 1.2}
    monkeypatch.setattr(
        precision_search,
        "milliseconds_per_token",
        lambda candidates, progress: [{1: speeds[str(c.precision)], 8: 1.0} for c in candidates],
    )
    lost = {"int8", "w4", "int8-w4", "int8-w4g128"}
    original = precision_search.PrecisionSelector._row

    def row(self: precision_search.PrecisionSelector, candidate, *rest):  # type: ignore[no-untyped-def]
        found = original(self, candidate, *rest)
        return precision_search.Tradeoff(**{**vars(found), "holds": found.precision not in lost})

    monkeypatch.setattr(precision_search.PrecisionSelector, "_row", row)
    assert export_onnx(str(tiny_run.folder), tmp_path / "bundle", precision="auto").precision == "w8"


def test_a_precision_that_costs_too_much_is_published_only_by_force(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QualityGate, "holds", lambda gate, change: False)
    with pytest.raises(
        LoraFtError, match=r"precision w4 loses too much quality: rouge1 changes by .* on 6 rows.*--force"
    ):
        export_onnx(str(tiny_run.folder), tmp_path / "bundle", precision="w4")
    assert list(tmp_path.iterdir()) == []
    export_onnx(str(tiny_run.folder), tmp_path / "bundle", precision="w4", force=True)
    gate = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["gate"]
    assert (gate["passed"], gate["forced"]) == (False, True)


def test_a_mixture_can_be_written_out(tiny_run: Run, tmp_path: Path) -> None:
    mixture = "encoder=int8,decoder=fp32,head=w4,embedding=fp32"
    done = export_onnx(str(tiny_run.folder), tmp_path / "bundle", precision="encoder=int8,head=w4", max_drop=100)
    assert done.precision == mixture


def test_auto_wants_rows(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="auto needs a task's rows"):
        export_onnx(str(tiny_base), tmp_path / "bundle", precision="auto")
    export_onnx(str(tiny_base), tmp_path / "bundle", precision="int8")
    assert "gate" not in json.loads((tmp_path / "bundle" / "manifest.json").read_text())

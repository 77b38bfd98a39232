"""Figures of the study `shapes` are shown for one token and one row; engines that failed keep their reason."""

from __future__ import annotations

from benchmarks.studies.shapes import tables


def test_times_are_divided_by_tokens_and_rows() -> None:
    figures = {"encoder": 1.0, "step": 0.02, "loaded": 100.0, "peak": 350.0}
    row = tables([{"case": "base:8x500", "engine": "onnx/int8", **figures}]).splitlines()[-1]
    assert row == "| base:8x500 | onnx/int8 | 1,000 | 250 | 20.0 | 2.50 | 250 |"


def test_a_failed_engine_is_shown_with_its_error() -> None:
    assert "out of memory" in tables([{"case": "large:1x8", "engine": "torch/fp32", "error": "out of memory"}])

"""Calls of ONNX Runtime by private and by public names return the same results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as native

from lora_ft.export.runtime import Generator, native_session
from lora_ft.export.runtime.session import PRODUCT_MODEL, ort_value
from tests.export.banks import draw_adapter, make_bank, member, merged

ROOT = Path(__file__).parents[3]
PRIVATE = r"\._sess\b|_ortvalue\b(?!_)|\._iobinding|onnxruntime_pybind11_state|run_with_ortvaluevector"
TEXTS = ["say: a", "some words, and then some more of them", "", "a b a b a b"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_beams": 3, "num_return_sequences": 2, "output_scores": True},
    {"do_sample": True, "seed": 3, "top_k": 9, "num_return_sequences": 2},
    {"prompt_lookup": True},
    {"no_repeat_ngram_size": 2, "min_new_tokens": 5},
]


@pytest.fixture(params=[True, False], ids=["private", "public"])
def available(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    available: bool = request.param
    monkeypatch.setattr(native_session, "is_available", lambda: available)
    return available


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    return ort.InferenceSession(PRODUCT_MODEL, providers=["CPUExecutionProvider"])


def test_private_names_exist_in_this_onnxruntime() -> None:
    assert native_session.is_available()


@pytest.mark.parametrize("missing", ["OrtValueVector", "OrtDevice"])
def test_a_missing_private_name_is_noticed(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(native, missing)
    native_session._device.cache_clear()
    assert not native_session.is_available.__wrapped__()


def test_a_bound_session_reads_its_memory(available: bool, session: ort.InferenceSession) -> None:
    x, y = np.zeros((4, 64), np.uint8), np.empty((4, 16), np.int32)
    binding = native_session.bind(session, {"x": ort_value(x)}, {"y": ort_value(y)}, copied=["x"])
    for value in (1, 2):
        x[...] = value
        for copy in binding.copies:
            copy()
        binding.run()
        assert (y == value * 127 * 64).all()


def test_single_runs_return_the_outputs(available: bool, session: ort.InferenceSession) -> None:
    x = ort_value(np.ones((4, 64), np.uint8))
    (y,) = native_session.run_positional(session, ["x"], [x], ["y"], "cpu", native_session.SHRINK_ARENA)
    (again,) = native_session.run_named(session, {"x": x}, ["y"])
    assert (y.numpy() == 127 * 64).all()
    assert np.array_equal(y.numpy(), again)


def test_answers_are_equal(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cover greedy search, beams, samples and drafts, with an adapter for all, some or no rows."""
    weights = draw_adapter(checkpoint, 1)
    make_bank(checkpoint, [member("x", weights, merged(checkpoint, weights, tmp_path / "x"))], tmp_path / "bank")
    adapters: list[Any] = [None, "x", [None, "x", "x", None]]

    def answer() -> list[Any]:
        generator = Generator.load(tmp_path / "bank", threads=1)
        rows = [generator.answer(TEXTS, adapter=adapter, **options) for adapter in adapters for options in OPTIONS]
        return [
            (row.tokens.tolist(), None if row.scores is None else row.scores.tolist()) for some in rows for row in some
        ]

    expected = answer()
    monkeypatch.setattr(native_session, "is_available", lambda: False)
    assert answer() == expected


def test_no_other_module_uses_private_names() -> None:
    folders = (ROOT / "export", ROOT / "lora_ft", ROOT / "benchmarks")
    paths = {path.resolve() for folder in folders for path in folder.rglob("*.py")}
    users = {path.name for path in paths if re.search(PRIVATE, path.read_text(encoding="utf-8"))}
    assert users == {"native_session.py"}

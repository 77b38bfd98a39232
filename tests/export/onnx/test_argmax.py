"""Argmax by blocks equals numpy's argmax for every vocabulary size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.export.onnx.argmax import argmax
from lora_ft.export.onnx.graph import BOOL, FLOAT, INT64, Graph
from lora_ft.export.runtime.session import open_session

VOCABULARIES = [1, 2, 97, 384, 1009, 32100, 32128]  # 97 and 1009 are prime


def found(logits: np.ndarray, barred: int | None = None, when: bool = True) -> np.ndarray:
    g = Graph("likeliest")
    x = g.input("logits", FLOAT, "b", "q", logits.shape[2])
    condition = g.input("when", BOOL)
    argmax(
        g, x, logits.shape[2], g.output("token", INT64, "b", "q"), None if barred is None else ((barred,), condition)
    )
    session = open_session(g.model().SerializeToString(), 1)
    return np.asarray(session.run(None, {"logits": logits, "when": np.array(when)})[0])


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))
def test_argmax_returns_the_first_maximum(vocabulary: int, seed: int, rows: int, length: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 2**kinds, (rows, length, vocabulary)).astype(np.float32)  # many are equal
    assert np.array_equal(found(logits), logits.argmax(-1))


@pytest.mark.parametrize("vocabulary", VOCABULARIES[1:])
@given(st.data())
def test_barred_tokens_are_not_chosen(vocabulary: int, data: st.DataObject) -> None:
    barred = data.draw(st.integers(0, vocabulary - 1))
    logits = np.random.default_rng(data.draw(st.integers(0, 9))).normal(size=(2, 2, vocabulary)).astype(np.float32)
    logits[0, :, barred] = 50
    without = logits.copy()
    without[..., barred] = -np.inf
    assert np.array_equal(found(logits, barred), without.argmax(-1))
    assert np.array_equal(found(logits, barred, when=False), logits.argmax(-1))


def test_infinite_logits_are_not_chosen() -> None:
    logits = np.full((1, 1, 384), -np.inf, np.float32)
    logits[0, 0, 300] = -1e30
    assert found(logits).item() == 300
    assert found(logits, 1).item() == 300

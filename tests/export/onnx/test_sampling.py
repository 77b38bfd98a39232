"""Tokens drawn within a graph are those that transformers' processors leave, as often as it would draw them."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lora_ft.export.onnx.graph import BOOL, FLOAT, INT64, Graph
from lora_ft.export.onnx.sampling import Sampling, choose
from lora_ft.export.runtime.session import open_session

VOCABULARY, BARRED = 96, 1


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    g = Graph("draw")
    logits, turn = g.input("logits", FLOAT, "b", 1, VOCABULARY), g.input("turn", INT64)
    forbid_eos, token = g.input("forbid_eos", BOOL), g.output("token", INT64, "b", 1)
    g.op("Identity", choose(g, logits, VOCABULARY, ((BARRED,), forbid_eos), Sampling.inputs(g), turn), output=token)
    return open_session(g.model().SerializeToString(), 1)


def drawn(
    session: ort.InferenceSession,
    logits: np.ndarray,
    uniform: np.ndarray,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    forbid_eos: bool = False,
) -> np.ndarray:
    """One token for each column of `uniform` [b,n]."""
    feed = {
        "logits": logits[:, None],
        "forbid_eos": np.array(forbid_eos),
        "temperature": np.array(temperature, np.float32),
        "top_k": np.array(top_k),
        "top_p": np.array(top_p, np.float32),
        "uniform": uniform.astype(np.float32),
    }
    turns = range(uniform.shape[1])
    return np.concatenate([session.run(None, feed | {"turn": np.array(turn)})[0] for turn in turns], axis=1)


def probabilities(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Return the distribution [b,vocabulary] that transformers samples from."""
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits))
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return torch.softmax(scores, -1).numpy()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.1, 4),
    top_k=st.sampled_from([0, 1, 5, 50, 96, 900]),
    top_p=st.sampled_from([0.01, 0.3, 0.9, 0.999, 1.0]),
)
def test_a_random_number_selects_by_cumulative_probability(
    session: ort.InferenceSession, seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (3, VOCABULARY)).astype(np.float32)
    uniform = rng.random((3, 4))
    tokens = drawn(session, logits, uniform, temperature, top_k, top_p)
    shares = probabilities(logits, temperature, min(top_k, VOCABULARY), top_p)
    order = np.argsort(-logits, axis=1, kind="stable")
    reached = np.cumsum(np.take_along_axis(shares, order, axis=1), axis=1)
    for row in range(3):
        for number, token in zip(uniform[row], tokens[row], strict=True):
            place = order[row].tolist().index(token)
            assert shares[row, token] > 0 or np.isclose(reached[row, place], top_p, atol=1e-4)
            assert reached[row, place] > number - 1e-4
            assert place == 0 or reached[row, place - 1] <= number + 1e-4


def test_tokens_are_drawn_by_probability(session: ort.InferenceSession) -> None:
    logits = np.full((1, VOCABULARY), -9, np.float32)
    logits[0, [3, 40, 77]] = [2.0, 1.0, 0.0]
    tokens = drawn(session, logits, (np.arange(2000)[None] + 0.5) / 2000, 1.0, top_k=3)
    expected = probabilities(logits, 1.0, 3, 1.0)[0]
    for token in (3, 40, 77):
        assert (tokens == token).mean() == pytest.approx(expected[token], abs=1e-3)


def test_without_a_temperature_the_likeliest_is_taken(session: ort.InferenceSession) -> None:
    logits = np.random.default_rng(0).normal(size=(4, VOCABULARY)).astype(np.float32)
    assert np.array_equal(drawn(session, logits, np.zeros((4, 1)), 0)[:, 0], logits.argmax(1))


@pytest.mark.parametrize("top_k", [0, 1, 4])
def test_a_barred_token_is_not_drawn(session: ort.InferenceSession, top_k: int) -> None:
    logits = np.zeros((2, VOCABULARY), np.float32)
    logits[:, BARRED] = 30
    uniform = np.tile(np.linspace(0, 0.999, 50), (2, 1))
    assert (drawn(session, logits, uniform, 1.0, top_k) == BARRED).all()
    assert not (drawn(session, logits, uniform, 1.0, top_k, forbid_eos=True) == BARRED).any()


@pytest.mark.parametrize("number", [0.0, 0.99999994])
def test_the_ends_of_the_interval_are_tokens_that_may_be_drawn(session: ort.InferenceSession, number: float) -> None:
    logits = np.random.default_rng(0).normal(size=(4, VOCABULARY)).astype(np.float32)
    tokens = drawn(session, logits, np.full((4, 1), number), 1.0, top_k=6)
    order = np.argsort(-logits, axis=1)
    assert np.array_equal(tokens[:, 0], order[:, 0 if number == 0 else 5])

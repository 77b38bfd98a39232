"""Weights rounded in blocks: on their grid, and with compensation closer in what they put out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.export.onnx import gptq
from lora_ft.export.onnx.gptq import round_to_nearest, round_with_compensation

SIZES = [32, 128]


def weights(outputs: int, inputs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((outputs, inputs), np.float32)


def correlated(rows: int, inputs: int, seed: int = 1) -> np.ndarray:
    """Inputs of a layer: a few directions and a little of all others."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 6)) @ rng.normal(size=(6, inputs)) + 0.1 * rng.normal(size=(rows, inputs))


def read_back(steps: np.ndarray, scale: np.ndarray, bits: int, inputs: int) -> np.ndarray:
    values = (steps.astype(np.float64) - (1 << (bits - 1))) * scale[..., None]
    return values.reshape(len(steps), -1)[:, :inputs]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (3, 31), (5, 32), (7, 100), (64, 256)])
def test_the_nearest_step_is_at_most_half_a_step_away(size: int, bits: int, outputs: int, inputs: int) -> None:
    weight = weights(outputs, inputs)
    steps, scale = round_to_nearest(weight, bits, size)
    assert steps.shape == (outputs, -(-inputs // size), size) and scale.shape == steps.shape[:2]
    away = np.abs(read_back(steps, scale, bits, inputs) - weight)
    width = np.repeat(np.abs(scale), size, axis=1)[:, :inputs]
    short = steps.reshape(outputs, -1)[:, :inputs] == (1 << bits) - 1  # of the other sign there is a step less
    assert (away <= np.where(short, 1, 0.5) * width * 1.001).all()


@given(st.integers(5, 40), st.integers(16, 100), st.integers(0, 9))
def test_compensation_reduces_the_output_error(outputs: int, inputs: int, seed: int) -> None:
    """With fewer weights, chance may outweigh the gain of compensation."""
    weight, rows = weights(outputs, inputs, seed), correlated(300, inputs, seed)
    exact = rows @ weight.T
    errors = [
        np.linalg.norm(rows @ read_back(*rounded, 4, inputs).T - exact)
        for rounded in (round_with_compensation(weight, rows.T @ rows, 4, 32), round_to_nearest(weight, 4, 32))
    ]
    assert errors[0] <= errors[1] * 0.8


@given(st.integers(1, 40), st.integers(1, 100), st.sampled_from([4, 8]), st.integers(0, 9))
def test_compensated_weights_lie_on_the_grid(outputs: int, inputs: int, bits: int, seed: int) -> None:
    rows = correlated(300, inputs, seed)
    steps, scale = round_with_compensation(weights(outputs, inputs, seed), rows.T @ rows, bits, 32)
    assert steps.shape == (outputs, -(-inputs // 32), 32) and scale.shape == steps.shape[:2]
    assert steps.max() < 1 << bits and np.isfinite(scale).all() and scale.all()


def test_compensation_removes_most_of_the_error_of_correlated_inputs() -> None:
    weight, rows = weights(200, 256), correlated(2000, 256)
    exact = rows @ weight.T
    compensated_error, nearest_error = (
        np.linalg.norm(rows @ read_back(*rounded, 4, 256).T - exact)
        for rounded in (round_with_compensation(weight, rows.T @ rows, 4, 32), round_to_nearest(weight, 4, 32))
    )
    assert compensated_error < 0.4 * nearest_error


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    weight = weights(9, 96)
    steps, scale = round_with_compensation(weight, np.diag(np.arange(1.0, 97)), 4, 32)
    np.testing.assert_array_equal(steps, np.clip(np.rint(weight.reshape(9, 3, 32) / scale[..., None]) + 8, 0, 15))


def test_the_scale_of_a_block_minimizes_the_error() -> None:
    weight, importance = weights(200, 96), np.arange(1.0, 97)
    costs = [
        (importance * (read_back(*rounded, 4, 96) - weight) ** 2).reshape(200, 3, 32).sum(2)
        for rounded in (round_with_compensation(weight, np.diag(importance), 4, 32), round_to_nearest(weight, 4, 32))
    ]
    assert (costs[0] <= costs[1] * 1.0001).all()
    assert costs[0].sum() < 0.95 * costs[1].sum()


def test_rounding_does_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, rows = weights(37, 70), correlated(50, 70)
    whole = round_with_compensation(weight, rows.T @ rows, 4, 32)
    monkeypatch.setattr(gptq, "_OUTPUTS", 5)
    parts = round_with_compensation(weight, rows.T @ rows, 4, 32)
    assert (whole[0] != parts[0]).mean() < 0.01  # a sum in another order may fall to the other side of a half
    np.testing.assert_allclose(whole[1], parts[1], rtol=1e-3)


@pytest.mark.parametrize("moments", [np.zeros((40, 40)), np.full((40, 40), 1e-30), np.ones((40, 40))])
def test_a_small_calibration_is_not_worse_than_none(moments: np.ndarray) -> None:
    weight = weights(6, 40)
    steps, scale = round_with_compensation(weight, moments, 4, 32)
    assert np.isfinite(scale).all()
    assert np.abs(read_back(steps, scale, 4, 40) - weight).max() < 2


def test_zero_weights_stay_zero() -> None:
    for steps, scale in (
        round_to_nearest(np.zeros((2, 33), np.float32), 4, 32),
        round_with_compensation(np.zeros((2, 33)), np.eye(33), 4, 32),
    ):
        assert not read_back(steps, scale, 4, 33).any()

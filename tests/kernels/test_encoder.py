"""The kernel's encoder against numpy at odd sizes, and the independence of its sources, on each instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.reference import Encoder
from tests.kernels.test_step import CHANGES, FORMATS, kernel_of, package, rounded, sizes


def cross_of(kernel: Any, s: Any, ids: np.ndarray, mask: np.ndarray, threads: int = 2) -> np.ndarray:
    """Return the keys and values of sources, in memory that held other numbers before."""
    cross = np.full((6, len(ids), s.heads, ids.shape[1], s.d_kv), 7, np.float16)
    kernel.encode(ids, mask, cross, threads)
    return cross.astype(np.float32)


@pytest.mark.parametrize("instructions", package.INSTRUCTIONS)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("changes", CHANGES)
def test_keys_and_values_are_those_of_numpy(instructions: str, kind: str, changes: dict[str, Any]) -> None:
    s = sizes(encoder=True, **changes)
    encoder, rng = Encoder(package, s, *FORMATS[kind]), np.random.default_rng(1)
    ids = rng.integers(0, s.vocabulary, (4, 77))
    mask = (np.arange(77) < np.array([[77], [1], [40], [18]])).astype(np.int64)
    mask[2, [0, 5, 17]] = 0  # holes
    cross, expected = cross_of(kernel_of(encoder, instructions), s, ids, mask), encoder.cross(ids, mask)
    there = np.broadcast_to(np.arange(77) < np.array([[77], [1], [40], [18]]), (6, s.heads, 4, 77)).swapaxes(1, 2)
    expected = rounded(np.ascontiguousarray(expected, np.float32)).astype(np.float32)
    assert np.abs(cross - expected)[there].max() < 0.15 * expected.std()  # a rounded input may be the next integer
    assert np.median(np.abs(cross - expected)[there]) < 0.01 * expected.std()
    assert not cross[~there].any()


@pytest.mark.parametrize("instructions", package.INSTRUCTIONS)
@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=15, deadline=None)  # the sanitizers run this without the suite's profile
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=7), padding=st.integers(0, 20), seed=st.integers(0, 99)
)
def test_a_source_has_equal_bits_in_any_company(
    instructions: str, kind: str, lengths: list[int], padding: int, seed: int
) -> None:
    s = sizes(layers=1, encoder=True)
    kernel = kernel_of(Encoder(package, s, *FORMATS[kind]), instructions)
    width, rng = max(lengths) + padding, np.random.default_rng(seed)
    ids = rng.integers(0, s.vocabulary, (len(lengths), width))
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    together = cross_of(kernel, s, ids, mask)
    for row, length in enumerate(lengths):
        alone = cross_of(kernel, s, ids[row : row + 1, :length], mask[row : row + 1, :length], threads=1)
        assert np.array_equal(together[:, row, :, :length], alone[:, 0])
        assert not together[:, row, :, length:].any()


def test_more_tokens_than_are_encoded_at_a_time_change_nothing() -> None:
    s = sizes(layers=1, encoder=True)
    kernel = kernel_of(Encoder(package, s))
    ids = np.random.default_rng(2).integers(0, s.vocabulary, (5, 1100))
    mask = np.ones_like(ids)
    together = cross_of(kernel, s, ids, mask)
    assert all(np.array_equal(together[:, i : i + 1], cross_of(kernel, s, ids[i : i + 1], mask[:1])) for i in range(5))


@pytest.mark.parametrize("token", [-1, 83])
def test_tokens_outside_the_vocabulary_are_refused(token: int) -> None:
    s = sizes(encoder=True)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        cross_of(kernel_of(Encoder(package, s)), s, np.array([[3, token]]), np.ones((1, 2), np.int64))


@pytest.mark.parametrize("wrong", [np.zeros((6, 1, 3, 2, 32), np.float32), np.zeros((5, 1, 3, 2, 32), np.float16)])
def test_memory_of_another_shape_is_refused(wrong: np.ndarray) -> None:
    s = sizes(encoder=True)
    kernel = kernel_of(Encoder(package, s))
    with pytest.raises(ValueError, match="keys and values"):
        kernel.encode(np.array([[3, 4]]), np.ones((1, 2), np.int64), wrong, 1)


def test_a_stack_without_its_matrices_is_refused() -> None:
    encoder = Encoder(package, sizes(encoder=True))
    with pytest.raises(ValueError, match="number of matrices"):
        package.Kernel(sizes(), encoder.weights, 1)

"""Adapters of the rows of a call against numpy, and the independence of such rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.reference import Decoder
from tests.kernels.test_step import CHANGES, FORMATS, Answers, kernel_of, package, sizes, sources

RANK = 5  # no multiple of four bytes


def adapters_of(kernel: Any, decoder: Decoder, ranks: list[int]) -> tuple[list[dict[int, Any]], list[Any]]:
    """Return the changes of random adapters, one of each rank, and the adapters."""
    changes = [decoder.draw_changes(seed, rank) for seed, rank in enumerate(ranks)]
    return changes, [package.Adapter(kernel.shapes, each) for each in changes]


@pytest.mark.parametrize("instructions", package.INSTRUCTIONS)
@pytest.mark.parametrize("kind", [*FORMATS, "w4 of one group"])
@pytest.mark.parametrize("change", CHANGES)
def test_logits_are_those_of_numpy(instructions: str, kind: str, change: dict[str, Any]) -> None:
    s = sizes(**change) if kind in FORMATS else sizes(d_model=96, d_ff=96, heads=3)
    decoder = Decoder(package, s, *FORMATS.get(kind, (4, 96)))
    kernel = kernel_of(decoder, instructions)
    changes, adapters = adapters_of(kernel, decoder, [RANK, 17])
    cross, mask = sources(s, 4, seed=1)
    tokens = np.random.default_rng(2).integers(0, s.vocabulary, (4, 9))
    answers = Answers(kernel, s, cross, mask, 4, [adapters[0], None, adapters[1], adapters[0]])
    logits, chosen = answers.take(tokens, np.zeros(1, np.int64))
    expected = decoder.logits(tokens, cross, mask, [changes[0], {}, changes[1], changes[0]])
    # a float that is rounded to the next integer moves a logit by hundredths of their spread, a mistake by all of it
    assert np.abs(logits - expected).max() < 0.15 * expected.std()
    assert np.median(np.abs(logits - expected)) < 0.01 * expected.std()
    assert np.array_equal(chosen, logits.argmax(axis=-1))
    base = decoder.logits(tokens, cross, mask)
    assert np.median(np.abs(base - expected)[[0, 2, 3]], axis=(1, 2)).min() > 0.15 * expected.std()


@pytest.mark.parametrize("instructions", package.INSTRUCTIONS)
@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=15, deadline=None)
@given(which=st.lists(st.integers(-1, 2), min_size=1, max_size=19), count=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_row_has_equal_bits_beside_any_adapters(
    instructions: str, kind: str, which: list[int], count: int, seed: int
) -> None:
    s, rows = sizes(layers=1), len(which)
    decoder = Decoder(package, s, *FORMATS[kind])
    kernel = kernel_of(decoder, instructions)
    _, adapters = adapters_of(kernel, decoder, [RANK, 8, 17])
    cross, mask = sources(s, rows, seed)
    tokens = np.random.default_rng(seed).integers(0, s.vocabulary, (rows, count))
    chosen = [None if i < 0 else adapters[i] for i in which]
    together = Answers(kernel, s, cross, mask, rows, chosen).take(tokens, np.zeros(rows, np.int64))[0]
    row = seed % rows
    own = [each[row : row + 1] for each in cross], mask[row : row + 1], 1
    alone = Answers(kernel, s, *own, chosen[row : row + 1] if chosen[row] else ())
    single = [alone.take(tokens[row : row + 1, i : i + 1], np.array([i]))[0][0, 0] for i in range(count)]
    assert np.array_equal(together[row], np.array(single))


def test_rows_that_share_a_source_share_its_adapter() -> None:
    s = sizes()
    decoder = Decoder(package, s)
    kernel = kernel_of(decoder)
    _, (adapter, _) = adapters_of(kernel, decoder, [RANK, RANK])
    cross, mask = sources(s, 2, seed=3)
    tokens = np.random.default_rng(4).integers(0, s.vocabulary, (6, 4))
    beams = Answers(kernel, s, cross, mask, 6, [None, adapter]).take(tokens, np.zeros(1, np.int64))[0]
    apart = Answers(
        kernel, s, [each.repeat(3, axis=0) for each in cross], mask.repeat(3, axis=0), 6, [None] * 3 + [adapter] * 3
    )
    assert np.array_equal(beams, apart.take(tokens, np.zeros(1, np.int64))[0])


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (12, {}),  # the head
        (1, {}),  # a layer of other sizes
        (2, {"a_scale": np.ones(3, np.float32)}),
        (2, {"b_scale": np.ones(3, np.float32)}),
        (2, {"a": np.zeros((96, 3), np.int8)}),
    ],
)
def test_a_change_that_does_not_fit_is_refused(number: int, change: dict[str, Any]) -> None:
    low_rank = package.LowRank(
        np.zeros((96, 4), np.int8),
        np.ones(4, np.float32),
        np.zeros((1, 4, 96), np.int8),
        np.ones(96, np.float32),
    )
    shapes = [(96, 288), (96, 160), (96, 96)] * 4 + [(96, 96)]
    package.Adapter(shapes, {2: low_rank})
    with pytest.raises(ValueError, match="does not fit layer"):
        package.Adapter(shapes, {number: replace(low_rank, **change)})

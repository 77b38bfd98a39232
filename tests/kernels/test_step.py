"""The kernel against numpy at odd sizes, and the independence of its rows, on each instruction set at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.reference import Decoder

package = pytest.importorskip("lora_ft_kernels", reason="lora-ft-kernels is not installed; see `make kernels`")

ROOM, SOURCE = 24, 21
CHANGES = [
    {},
    {"gated": False, "activation": "relu"},
    {"d_kv": 64, "activation": "silu"},
    {"d_kv": 128, "heads": 1},
]
FORMATS = {"int8": (8, 0), "w8": (8, 16), "w4": (4, 32)}


def sizes(**changes: Any) -> Any:
    """Return sizes that are no multiples of a vector's bytes."""
    usual = {"layers": 2, "heads": 3, "d_kv": 32, "d_model": 96, "d_ff": 160, "vocabulary": 83, "far": 5}
    return package.Sizes(**{**usual, **changes})


def kernel_of(decoder: Decoder, instructions: str = "", threads: int = 2) -> Any:
    """Return the kernel of a decoder, or skip the test if the processor lacks the instructions."""
    try:
        return package.Kernel(decoder.sizes, decoder.weights, threads, instructions)
    except ValueError:
        pytest.skip(f"this processor lacks {instructions}")


class Answers:
    """Rows of answers with memory of their own, whose tokens a kernel takes call by call."""

    def __init__(
        self,
        kernel: Any,
        s: Any,
        cross: list[np.ndarray],
        mask: np.ndarray,
        rows: int,
        adapters: Sequence[Any | None] = (),
    ) -> None:
        self._kernel, self._s, self._rows, self._adapters = kernel, s, rows, adapters
        self._cross, self._mask = [np.ascontiguousarray(each) for each in cross], np.ascontiguousarray(mask)
        self._past = [np.full((rows, s.heads, ROOM, s.d_kv), 7, np.float32) for _ in cross]

    def take(self, tokens: np.ndarray, lengths: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits of these tokens, and the tokens that the kernel chose."""
        logits = np.empty((*tokens.shape, self._s.vocabulary), np.float32)
        return logits, self._run(tokens, lengths, logits, **options)

    def choose(self, tokens: np.ndarray, lengths: np.ndarray, **options: Any) -> np.ndarray:
        """Return the tokens that the kernel chose without all logits."""
        return self._run(tokens, lengths, None, **options)

    def _run(self, tokens: np.ndarray, lengths: np.ndarray, logits: np.ndarray | None, **options: Any) -> np.ndarray:
        memory = package.Memory(
            mask=self._mask.ctypes.data,
            cross=[each.ctypes.data for each in self._cross],
            past=[each.ctypes.data for each in self._past],
            sources=len(self._mask),
            length=self._mask.shape[1],
            room=ROOM,
            adapters=self._adapters,
        )
        step = package.Step(self._kernel, memory, tokens.shape, len(lengths), 2, logits)
        step.run(tokens, lengths, **options)
        return step.next


def rounded(values: np.ndarray) -> np.ndarray:
    """Return values as the kernel takes those of sources."""
    return package.rounded(values, np.empty(values.shape, np.float16))


def test_values_are_rounded_as_by_numpy() -> None:
    rng, halves = np.random.default_rng(0), np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    spread = rng.standard_normal(5000) * 10.0 ** rng.integers(-9, 5, 5000)
    middles = (halves[1:] + halves[:-1]) / 2  # of two equally near, the even one
    beside = np.nextafter(middles[middles > 1e-4], np.float32(0))  # smaller values are rounded to 37 bits before
    values = np.concatenate([halves, middles, beside, spread]).astype(np.float32)
    for each in (values, -values):
        expected = each.clip(-65504, 65504).astype(np.float16)
        assert np.array_equal(rounded(each).view(np.uint16), expected.view(np.uint16))


def test_values_beyond_the_range_become_the_largest() -> None:
    values = np.array([1e5, np.inf, -np.inf, 65519, 65521, np.nan], np.float32)
    assert np.array_equal(rounded(values), np.float16([65504, 65504, -65504, 65504, 65504, np.nan]), equal_nan=True)


@pytest.mark.parametrize(
    ("values", "to"),
    [
        (np.zeros(3, np.float32), np.zeros(4, np.float16)),
        (np.zeros(3), np.zeros(3, np.float16)),
        (np.zeros(6, np.float32)[::2], np.zeros(3, np.float16)),
    ],
)
def test_values_are_not_rounded_to_memory_that_does_not_fit(values: np.ndarray, to: np.ndarray) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        package.rounded(values, to)


def sources(s: Any, rows: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return keys and values of random sources, and a mask with different lengths."""
    rng = np.random.default_rng(seed)
    shape = rows, s.heads, SOURCE, s.d_kv
    cross = [rounded(rng.standard_normal(shape).astype(np.float32)) for _ in range(2 * s.layers)]
    return cross, (np.arange(SOURCE) < rng.integers(1, SOURCE + 1, (rows, 1))).astype(np.int64)


@pytest.mark.parametrize("instructions", package.INSTRUCTIONS)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("changes", CHANGES)
def test_logits_are_those_of_numpy(instructions: str, kind: str, changes: dict[str, Any]) -> None:
    s = sizes(**changes)
    decoder = Decoder(package, s, *FORMATS[kind])
    cross, mask = sources(s, 3, seed=1)
    tokens = np.random.default_rng(2).integers(0, s.vocabulary, (3, 9))
    logits, chosen = Answers(kernel_of(decoder, instructions), s, cross, mask, 3).take(tokens, np.zeros(1, np.int64))
    expected = decoder.logits(tokens, cross, mask)
    # a float that is rounded to the next integer moves a logit by hundredths of their spread, a mistake by all of it
    assert np.abs(logits - expected).max() < 0.1 * expected.std()
    assert np.median(np.abs(logits - expected)) < 0.01 * expected.std()
    assert np.array_equal(chosen, logits.argmax(axis=-1))


calls = st.lists(st.integers(1, 11), min_size=1, max_size=6)


@pytest.mark.parametrize("instructions", package.INSTRUCTIONS)
@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=15)
@given(rows=st.integers(1, 19), counts=calls, seed=st.integers(0, 99))
def test_a_row_has_equal_bits_in_any_company(
    instructions: str, kind: str, rows: int, counts: list[int], seed: int
) -> None:
    s = sizes(layers=1)
    kernel = kernel_of(Decoder(package, s, *FORMATS[kind]), instructions)
    cross, mask = sources(s, rows, seed)
    counts = [count for i, count in enumerate(counts) if sum(counts[: i + 1]) <= ROOM]
    tokens = np.random.default_rng(seed).integers(0, s.vocabulary, (rows, sum(counts)))
    together, at = Answers(kernel, s, cross, mask, rows), 0
    joined = []
    for count in counts:
        joined.append(together.take(tokens[:, at : at + count], np.full(rows, at))[0])
        at += count
    row = seed % rows
    alone = Answers(kernel, s, [each[row : row + 1] for each in cross], mask[row : row + 1], 1)
    single = [alone.take(tokens[row : row + 1, i : i + 1], np.array([i]))[0][0, 0] for i in range(at)]
    assert np.array_equal(np.concatenate(joined, axis=1)[row], np.array(single))


def test_rows_share_a_source_and_drop_tokens() -> None:
    s = sizes()
    decoder = Decoder(package, s)
    kernel = kernel_of(decoder)
    cross, mask = sources(s, 2, seed=3)
    tokens = np.random.default_rng(4).integers(0, s.vocabulary, (4, 6))
    beams = Answers(kernel, s, cross, mask, 4)
    expected = [beams.take(tokens[:, i : i + 1], np.array([i]))[0] for i in range(6)]
    apart = Answers(kernel, s, [each.repeat(2, axis=0) for each in cross], mask.repeat(2, axis=0), 4)
    apart.take(tokens[:, :5], np.zeros(4, np.int64))
    again = apart.take(tokens[:, 2:4], np.full(4, 2))[0]  # over the last three
    assert np.array_equal(again, np.concatenate(expected[2:4], axis=1))


def test_ends_are_not_chosen_where_they_are_forbidden() -> None:
    s = sizes()
    decoder = Decoder(package, s)
    cross, mask = sources(s, 8, seed=5)
    tokens = np.random.default_rng(6).integers(0, s.vocabulary, (8, 16))
    logits, chosen = Answers(kernel_of(decoder), s, cross, mask, 8).take(tokens, np.zeros(1, np.int64))
    ends = np.unique(chosen)[-2:]
    decoder.weights = replace(decoder.weights, ends=ends.tolist())
    answers = Answers(kernel_of(decoder), s, cross, mask, 8)
    assert np.array_equal(answers.take(tokens, np.zeros(1, np.int64))[1], chosen)
    forbidden = answers.take(tokens, np.zeros(1, np.int64), forbid_ends=True)[1]
    logits[..., ends] = -np.inf
    assert np.array_equal(forbidden, logits.argmax(axis=-1))


def test_the_first_of_equal_tokens_is_chosen() -> None:
    s = sizes()
    decoder = Decoder(package, s)
    head = decoder.weights.matrices[-1]
    decoder.weights.matrices[-1] = package.Matrix(np.zeros_like(head.values), head.scales)
    cross, mask = sources(s, 1, seed=7)
    answers = Answers(kernel_of(decoder), s, cross, mask, 1)
    assert answers.take(np.array([[5]]), np.zeros(1, np.int64))[1].item() == 0


def test_a_call_has_no_more_threads_than_the_kernel() -> None:
    s = sizes()
    decoder = Decoder(package, s)
    cross, mask = sources(s, 2, seed=9)
    tokens = np.random.default_rng(9).integers(0, s.vocabulary, (2, 5))
    single, more = (
        Answers(kernel_of(decoder, threads=threads), s, cross, mask, 2).take(tokens, np.zeros(1, np.int64))[0]
        for threads in (1, 3)  # calls ask for 2
    )
    assert np.array_equal(single, more)


@pytest.mark.parametrize(("tokens", "lengths"), [([[83]], [0]), ([[-1]], [0]), ([[3, 4]], [ROOM - 1]), ([[3]], [-1])])
def test_what_is_out_of_range_is_refused(tokens: list[list[int]], lengths: list[int]) -> None:
    s = sizes()
    cross, mask = sources(s, 1, seed=8)
    answers = Answers(kernel_of(Decoder(package, s)), s, cross, mask, 1)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        answers.take(np.array(tokens), np.array(lengths))


def test_unknown_instructions_and_odd_sizes_are_refused() -> None:
    decoder = Decoder(package, sizes())
    with pytest.raises(ValueError, match="instructions"):
        package.Kernel(decoder.sizes, decoder.weights, 1, "abacus")
    with pytest.raises(ValueError, match="sizes"):
        package.Kernel(sizes(d_kv=24), decoder.weights, 1)


@pytest.mark.parametrize(
    "change", [{"bits": 4}, {"scales": np.ones(3, np.float32)}, {"group": 24, "scales": np.ones((32, 1))}]
)
def test_a_matrix_that_does_not_fit_is_refused(change: dict[str, object]) -> None:
    matrix = package.Matrix(np.zeros((32, 32), np.int8), np.ones(32, np.float32))
    with pytest.raises(ValueError, match="are no matrix of"):
        replace(matrix, **change)


@pytest.mark.parametrize("instructions", package.INSTRUCTIONS)
@pytest.mark.parametrize("kind", ["int8", "w8"])
@pytest.mark.parametrize("alike", [False, True])
@settings(max_examples=15)
@given(rows=st.integers(1, 3), vocabulary=st.integers(41, 700), forbid_ends=st.booleans(), seed=st.integers(0, 99))
def test_the_preview_of_the_head_chooses_what_the_head_chooses(
    instructions: str, kind: str, alike: bool, rows: int, vocabulary: int, forbid_ends: bool, seed: int
) -> None:
    s = sizes(layers=1, vocabulary=vocabulary, d_model=256)
    decoder = Decoder(package, s, *FORMATS[kind], seed=seed)
    head = decoder.weights.matrices[-1]
    values = head.values if kind == "w8" else head.values.T  # [vocabulary, d_model]
    if alike:  # tokens differ in the lower halves of their bytes alone
        values = values[:1] // 32 * 16 + np.random.default_rng(seed).integers(0, 16, values.shape)
    twice = np.arange(vocabulary) // 2 * 2
    values, scales = values[twice].astype(head.values.dtype), head.scales[twice]
    head = replace(head, values=values if kind == "w8" else values.T, scales=scales)
    decoder.weights.matrices[-1] = head
    cross, mask = sources(s, rows, seed)
    tokens = np.random.default_rng(seed).integers(0, vocabulary, (rows, 1))
    answers = Answers(kernel_of(decoder, instructions), s, cross, mask, rows)
    whole = answers.take(tokens, np.zeros(1, np.int64), forbid_ends=forbid_ends)[1]
    assert np.array_equal(answers.choose(tokens, np.zeros(1, np.int64), forbid_ends=forbid_ends), whole)

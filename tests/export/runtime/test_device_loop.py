"""The loop on the device returns the tokens of the plain loop, from few looks at them and from buffers that are kept.

Here the device is the processor.
"""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.export.precision import parse
from lora_ft.export.runtime import Generator, device_loop
from lora_ft.export.runtime.captured_graphs import Call, CapturedGraphs
from tests.export.oracle import END, make_bundle
from tests.export.runtime.cases import Pair, words

PLAIN = {"prompt_lookup": False}
STEPS = 4


@pytest.fixture(scope="module")
def looped(pair: Pair) -> Generator:
    """Return the pair's bundle with the loop."""
    return Generator.load(pair.generator.folder, threads=1, provider="cpu", device_steps=STEPS)


@pytest.fixture
def bundled(published: Path) -> Generator:
    return Generator.load(published, threads=1, provider="cpu", device_steps=STEPS)


def tokens(generator: Generator, texts: list[str], **options: Any) -> list[list[int]]:
    """Return the tokens of the answers, all texts in one batch."""
    answers = generator.answer(texts, batch_size=len(texts), **PLAIN, **options)
    return [answer.tokens.tolist() for answer in answers]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 999), rows=st.integers(2, 11), most=st.integers(1, 40), least=st.integers(0, 40))
def test_tokens_are_those_of_the_plain_loop(
    pair: Pair, looped: Generator, seed: int, rows: int, most: int, least: int
) -> None:
    texts, limits = words(seed, rows), {"max_new_tokens": most, "min_new_tokens": min(least, most)}
    assert tokens(looped, texts, **limits) == tokens(pair.generator, texts, **limits)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_tokens_do_not_depend_on_the_steps_between_looks(pair: Pair, steps: int) -> None:
    generator = Generator.load(pair.generator.folder, threads=1, provider="cpu", device_steps=steps)
    texts = words(3, 6)
    answers = tokens(generator, texts, max_new_tokens=21)
    assert answers == tokens(pair.generator, texts, max_new_tokens=21)
    assert len({len(answer) for answer in answers}) > 1
    assert all(END not in answer[:-1] for answer in answers)


def test_rooms_grow_and_keep_the_tokens(pair: Pair, looped: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_loop, "_ROOM", 1)
    texts, limits = words(5, 3), {"max_new_tokens": 300, "min_new_tokens": 290}
    expected = tokens(pair.generator, texts, **limits)
    assert tokens(looped, texts, **limits) == expected  # each room is entered for the first time
    assert tokens(looped, texts, **limits) == expected
    longer = np.random.default_rng(0).integers(3, 60, (3, 70))  # a new bucket, whose state still counts 300 tokens
    answers = [each.generate_ids(longer, longer > 0, max_new_tokens=9, **PLAIN) for each in (looped, pair.generator)]
    assert np.array_equal(*answers)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Return the calls of all graphs that are bound from now on, as (graph, whether the host waits)."""
    made: list[tuple[str, bool]] = []
    bound = CapturedGraphs.call

    def noted(graph: str, wait: bool, call: Call) -> Call:
        return lambda: (made.append((graph, wait)), call())[1]

    def noting(self: CapturedGraphs, graph: str, *values: Any) -> tuple[Call, Call]:
        at_once, waiting = bound(self, graph, *values)
        return noted(graph, False, at_once), noted(graph, True, waiting)

    monkeypatch.setattr(CapturedGraphs, "call", noting)
    return made


def test_the_host_looks_at_tokens_every_few_steps(calls: list[tuple[str, bool]], published: Path) -> None:
    generator = Generator.load(published, threads=1, provider="cpu", device_steps=STEPS)
    calls.clear()
    tokens(generator, words(0, 2), max_new_tokens=10, min_new_tokens=10)
    step, look = ("device_step", False), ("device_step", True)
    assert calls == [("encoder", True), step, step, step, look, step, step, step, look, step, look]


def test_the_loop_stops_after_all_rows_have_ended(calls: list[tuple[str, bool]], published: Path) -> None:
    generator = Generator.load(published, threads=1, provider="cpu", device_steps=STEPS)
    texts, limit = words(0, 12), 60
    ending = [
        text
        for text, answer in zip(texts, tokens(generator, texts, max_new_tokens=limit), strict=True)
        if answer[-1] == END
    ]
    calls.clear()
    longest = max(map(len, tokens(generator, ending, max_new_tokens=limit)))
    assert STEPS < longest < limit - STEPS
    assert calls.count(("device_step", True)) == -(-longest // STEPS)


def test_equal_buckets_share_buffers_and_calls(bundled: Generator) -> None:
    loop = bundled.device_loop
    assert loop is not None
    tokens(bundled, words(0, 5), max_new_tokens=8)
    values, bound = dict(loop._values), dict(loop._bound)
    tokens(bundled, words(1, 8, longest=12), max_new_tokens=30)
    assert loop._values == values and loop._bound == bound
    tokens(bundled, words(1, 9), max_new_tokens=30)
    assert len(loop._bound) == len(bound) + 1


def test_many_buckets_are_forgotten(pair: Pair, looped: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_loop, "_BUCKETS", 2)
    for rows in (2, 9, 3, 17, 5):
        texts = words(rows, rows)
        assert tokens(looped, texts, max_new_tokens=9) == tokens(pair.generator, texts, max_new_tokens=9)
        assert looped.device_loop is not None and len(looped.device_loop._bound) <= 2


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"do_sample": True, "seed": 1}, {"repetition_penalty": 1.5}], ids=str
)
def test_other_options_take_the_usual_steps(pair: Pair, looped: Generator, options: dict[str, Any]) -> None:
    texts = words(7, 4)
    assert tokens(looped, texts, **options) == tokens(pair.generator, texts, **options)


def test_a_copy_has_the_loop_too(bundled: Generator) -> None:
    copy = pickle.loads(pickle.dumps(bundled))
    assert copy.step_engine == bundled.step_engine
    assert copy.step_engine == f"graphs, {STEPS} steps at once, no CUDA graphs: the provider cpu has none"
    assert Generator.load(bundled.folder, provider="cpu", kernel=False).device_loop is None


def test_a_forked_child_begins_again(bundled: Generator) -> None:
    texts = words(2, 3)
    expected = tokens(bundled, texts, max_new_tokens=12)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(tokens, (bundled, texts), {"max_new_tokens": 12}).get(60) == expected


@pytest.mark.parametrize("steps", [-1, 9])
def test_a_number_of_steps_that_the_state_cannot_hold_is_refused(published: Path, steps: int) -> None:
    with pytest.raises(UsageError, match=rf"^device_steps is not in 1\.\.8 \(got {steps}\)"):
        Generator.load(published, provider="cpu", device_steps=steps)


def test_a_bundle_for_processors_lacks_the_graph(checkpoint: Path, tmp_path: Path) -> None:
    make_bundle(checkpoint, tmp_path / "bundle", precisions=[parse("int8")])
    assert not (tmp_path / "bundle" / "device_step.onnx").exists()
    with pytest.raises(UsageError, match=r"lacks device_step\.onnx"):
        Generator.load(tmp_path / "bundle", provider="cpu", device_steps=STEPS)

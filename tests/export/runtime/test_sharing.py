"""Threads and processes that share a generator get the same answers as a single caller."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_ft.export.runtime.model as model_module
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.decoding import draft_length
from lora_ft.export.runtime.native_session import SHRINK_ARENA, run_positional
from tests.export.banks import draw_adapter, make_bank, member, merged

TEXTS = ["say: a", "hello there", "some words, and then some more of them", "X", "a b a b a b", "", "x" * 60]
WAYS: list[dict[str, Any]] = [
    {},
    {"num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "seed": 3, "top_k": 0, "top_p": 0.9, "num_return_sequences": 2},
    {"do_sample": True, "seed": 4, "top_k": 9},
    {"prompt_lookup": True, "max_new_tokens": 70},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    {"min_new_tokens": 5, "output_scores": True},
    {"allowed": ((5, 6), (7,), (5, 8, 9))},
]
_WAIT = 60  # seconds until a child counts as hung
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(scope="module")
def bank(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    adapters = {name: draw_adapter(checkpoint, seed) for seed, name in enumerate(("x", "y"))}
    members = [member(name, adapter, merged(checkpoint, adapter, root / name)) for name, adapter in adapters.items()]
    make_bank(checkpoint, members, root / "bank")
    return root / "bank"


def _calls(generator: Generator) -> list[Callable[[], Any]]:
    def answer(adapter: Any, options: dict[str, Any]) -> Any:
        answers = generator.answer(TEXTS, adapter=adapter, batch_size=3, **options)
        return [
            (generated.tokens.tolist(), None if generated.scores is None else generated.scores.tolist())
            for generated in answers
        ]

    adapters: list[Any] = [None, "x", ["x", None, "y", "y", None, "x", "x"]]
    calls: list[Callable[[], Any]] = [
        lambda adapter=adapter, mode=mode: answer(adapter, mode) for adapter in adapters for mode in WAYS
    ]
    calls += [lambda name=name: list(generator.stream(TEXTS[2], adapter=name)) for name in (None, "x", "y")]
    ids = np.array([[0, 0, 5, 9, 1], [8, 7, 6, 5, 1]])
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    calls += [lambda: generator.generate_ids(ids, mask, prompt_lookup=True).tolist()]
    return calls


@pytest.fixture
def fast_switches() -> Iterator[None]:
    """Switch threads a thousand times as often, to provoke races."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_get_the_same_answers_as_one(bank: Path, fast_switches: None) -> None:
    """Graphs, adapters and settings are loaded within the threads."""
    expected = [call() for call in _calls(Generator.load(bank, threads=1))]
    calls = _calls(Generator.load(bank, threads=1))

    def use(seed: int) -> list[int]:
        order = np.random.default_rng(seed).permutation(np.arange(40) % len(calls)).tolist()
        return [number for number in order if calls[number]() != expected[number]]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert not any(pool.map(use, range(16)))


def test_interleaved_streams_do_not_mix(bank: Path) -> None:
    generator = Generator.load(bank, threads=1)
    names = [None, "x", "y"] * 2
    expected = ["".join(generator.stream(TEXTS[2], adapter=name)) for name in names]
    streams = [generator.stream(TEXTS[2], adapter=name) for name in names]
    texts = [""] * len(names)
    for _ in range(100):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    assert texts == expected


def _forked(job: Callable[[], Any]) -> Any:
    """Return the result of a job in a forked child. Fail if it hangs."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            os.write(writing, json.dumps(job()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        ready, _, _ = select.select([pipe], [], [], _WAIT)
        if not ready:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert ready, "the child hangs"
        return json.loads(pipe.read())


@needs_fork
def test_a_child_forked_while_threads_generate_answers(published: Path) -> None:
    expected = Generator.load(published, threads=1).generate(TEXTS, prompt_lookup=True)
    for _ in range(3):
        generator = Generator.load(published, threads=2)
        stop = threading.Event()

        def use(generator: Generator = generator, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                generator.generate(TEXTS, prompt_lookup=True)
                generator.generate(TEXTS[:2], num_beams=2)

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            answers = _forked(lambda generator=generator: generator.generate(TEXTS, prompt_lookup=True))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert answers == expected


@needs_fork
def test_locks_are_free_in_a_forked_child(published: Path) -> None:
    generator = Generator.load(published, threads=1)
    expected = generator.generate(TEXTS, prompt_lookup=True)
    with generator.model._opening, draft_length._LOCK:
        pace = draft_length._CONTROLLERS[generator.model]
        with pace.lock:
            answers = _forked(lambda: generator.generate(TEXTS, prompt_lookup=True))
    assert answers == expected


@needs_fork
@pytest.mark.parametrize("options", [{}, {"prompt_lookup": True}, {"do_sample": True, "seed": 1}])
def test_a_stream_continues_in_a_forked_child(published: Path, options: dict[str, Any]) -> None:
    """Another thread may hold the draft controller during the fork."""
    generator = Generator.load(published, threads=2)
    expected = list(generator.stream(TEXTS[2], **options))
    stream = generator.stream(TEXTS[2], **options)
    begun = [next(stream) for _ in range(2)]
    with draft_length.controller_of(generator.model).lock:
        assert _forked(lambda: [*begun, *stream]) == expected
    assert [*begun, *stream] == expected


@needs_fork
def test_a_child_of_a_child_answers(published: Path) -> None:
    generator = Generator.load(published, threads=2)
    expected = generator.generate(TEXTS, num_beams=2)

    def fork_again() -> Any:
        return [generator.generate(TEXTS, num_beams=2), _forked(lambda: generator.generate(TEXTS, num_beams=2))]

    assert _forked(fork_again) == [expected, expected]


def test_a_spawned_process_takes_a_pickled_generator(published: Path) -> None:
    generator = Generator.load(published, threads=1)
    expected = generator.generate(TEXTS)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(Generator.generate, generator, TEXTS).result(timeout=2 * _WAIT) == expected


_MEASURE = """
import sys
import numpy as np
from lora_ft.export.runtime import Generator

def megabytes(name):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(name + ":"))
    return int(line.split()[1]) / 1024

def use(rows, length):
    ids = np.full((rows, length), 7)
    generator.generate_ids(ids, np.ones_like(ids), max_new_tokens=3)

generator = Generator.load(sys.argv[1], threads=1)
use(1, 20)
before = megabytes("VmRSS")
use(16, 1024)
use(1, 20)
print(before, megabytes("VmHWM"), megabytes("VmRSS"))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_memory_of_a_long_source_is_returned(published: Path) -> None:
    """Attention scores take 200 MB here, which stay allocated without shrinkage."""
    process = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(published)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    before, most, after = map(float, process.stdout.split())
    assert most - before > 200
    assert after - before < (most - before) / 2


def test_memory_of_large_outputs_is_returned_by_the_next_call(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator.load(published, threads=1)
    generator.generate("a")
    runs = list[bool]()

    def spy(*arguments: Any, options: Any) -> Any:
        if arguments[0] is generator.model._session("encoder"):
            runs.append(options is SHRINK_ARENA)
        return run_positional(*arguments, options=options)

    monkeypatch.setattr(model_module, "run_positional", spy)
    rows, length, width = 1, 40, 2 * 2 * 3 * 8  # keys and values of 2 layers with 3 heads of 8
    monkeypatch.setattr(model_module, "LARGE", 4 * rows * length * width - 1)
    ids = np.full((rows, length), 7)
    for tokens in (ids[:, :5], ids, ids[:, :5], ids[:, :5]):
        generator.generate_ids(tokens, np.ones_like(tokens), max_new_tokens=2)
    assert runs == [False, length * 3 > width, True, False]

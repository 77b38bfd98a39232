"""Malformed inputs of a generator are refused by name; threads, forks and pickles are supported."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.decoding.draft_length import DraftLengthController
from lora_ft.export.runtime.manifest import describe
from lora_ft.verify import verify

TEXTS = ["say: a", "hello there", "some words, and then some more of them", "X"]


def test_a_single_str_is_one_text(generator: Generator) -> None:
    assert generator.generate("hello there") == generator.generate(["hello there"])
    assert len(generator.answer("hello there")) == 1


@pytest.mark.parametrize("texts", [[b"bytes"], ["a", 5], [None], [["a"]]])
def test_a_non_text_is_refused_with_its_number(generator: Generator, texts: list[Any]) -> None:
    with pytest.raises(UsageError, match=f"text {len(texts)} is not a str"):
        generator.generate(texts)
    with pytest.raises(UsageError, match="the prompt is not one text"):
        next(generator.stream(texts))  # type: ignore[arg-type]


def test_padding_on_either_side_has_the_same_answers(generator: Generator) -> None:
    rows = generator.tokenizer.encode(TEXTS)
    width = max(map(len, rows)) + 2
    expected = [answer.tokens.tolist() for answer in generator.answer(TEXTS, max_new_tokens=8)]
    for on_left in (False, True):
        ids, mask = np.full((len(rows), width), 7), np.zeros((len(rows), width), np.int64)
        for row, (out, row_mask) in zip(rows, zip(ids, mask, strict=True), strict=True):
            place = slice(width - len(row), width) if on_left else slice(0, len(row))
            out[place], row_mask[place] = row, 1
        tokens = generator.generate_ids(ids, mask, max_new_tokens=8)
        assert [generator.special.trim(row).tolist() for row in tokens] == expected


@pytest.mark.parametrize(
    ("ids", "mask", "says"),
    [
        ([[5, 6, 7, 1]], [[1, 0, 1, 1]], "row 1 has a gap"),
        ([[5, 1], [5, 1]], [[1, 1], [0, 0]], "row 2 is all zeros"),
        ([[5, 80]], [[1, 1]], "row 1 are not in 0..79"),
        ([[5, -1]], [[1, 1]], "row 1 are not in"),
        ([[5, 1]], [[1, 2]], "values besides 0 and 1"),
        ([[5, 1]], [[1]], "do not have the same shape"),
        ([5, 1], [1, 1], "do not have the same shape"),
        ([[5.5, 1]], [[1, 1]], "not integers"),
    ],
)
def test_masks_with_gaps_and_unknown_ids_are_refused(generator: Generator, ids: Any, mask: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        generator.generate_ids(np.array(ids), np.array(mask))


def test_answers_report_truncated_texts(generator: Generator) -> None:
    answers = generator.answer(["x" * 500, "x"], max_new_tokens=3)
    assert [answer.source_cut for answer in answers] == [True, False]


def test_a_tokenizer_panic_becomes_an_error(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise PanicException("index out of bounds\nnote: run with RUST_BACKTRACE=1")

    tokenizer = Tokenizer(published / "tokenizer.json")
    monkeypatch.setattr(tokenizer, "_tokenizer", Broken())
    for call in (lambda: tokenizer.encode(["a"]), lambda: tokenizer.decode([[5]]), lambda: tokenizer.closing):
        with pytest.raises(LoraFtError, match="index out of bounds"):
            call()


def test_an_interrupt_is_not_an_error(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(published / "tokenizer.json")

    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "_tokenizer", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode(["a"])


def test_a_generator_is_pickled_as_its_folder(generator: Generator) -> None:
    again = pickle.loads(pickle.dumps(generator))
    assert again is not generator
    assert again.generate(TEXTS) == generator.generate(TEXTS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_answers(published: Path) -> None:
    generator = Generator.load(published, threads=2)
    expected = generator.generate(TEXTS, prompt_lookup=True)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        answers = pool.submit(_in_child, generator).result(timeout=60)
    assert answers == expected
    assert generator.generate(TEXTS) == expected


def _in_child(generator: Generator) -> list[str]:
    return generator.generate(TEXTS, prompt_lookup=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_process_forked_with_a_used_generator_answers(published: Path) -> None:
    generator = Generator.load(published, threads=2)
    expected = generator.generate(TEXTS, num_beams=2)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, json.dumps(generator.generate(TEXTS, num_beams=2)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answers = json.loads(pipe.read())
    assert os.waitpid(child, 0)[1] == 0
    assert answers == expected


def test_threads_share_a_generator_and_its_draft_controller(published: Path) -> None:
    generator = Generator.load(published, threads=1)
    expected = generator.generate(TEXTS)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(generator.generate, TEXTS[i % 4 :], prompt_lookup=True) for i in range(64)]
        for i, job in enumerate(jobs):
            assert job.result() == expected[i % 4 :]


def test_the_draft_controller_is_thread_safe() -> None:
    pace = DraftLengthController()

    def use(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(300):
            rows = int(rng.integers(1, 40))
            pace.rests(rows)
            evidence = [("copy", int(rng.integers(1, 6)))] * int(rng.integers(1, 16))
            width = pace.width(rows, [[pace.share(each) for each in evidence]])
            pace.took(rows, width, float(rng.random()))
            pace.accepted(evidence, 1)
            pace.gave(rows, float(rng.random()), rows, rows + 1)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(16)))


FILES = ("prompt.json", "config.json", "generation_config.json", "probe.json", "manifest.json")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**6) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


@given(st.sampled_from(FILES), st.integers(0, 10**6), VALUES)
@example("prompt.json", 0, [])
@example("generation_config.json", 0, 5)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_malformed_json_of_a_bundle_is_refused(
    published: Path, tmp_path: Path, file: str, number: int, value: Any
) -> None:
    folder = tmp_path / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(published, folder, copy_function=os.link)
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    places = list(_places(content))
    path = places[number % len(places)]
    if not path:
        content = value
    else:
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    if file != "manifest.json":
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        manifest["files"][file] = describe(folder / file)
        (folder / "manifest.json").unlink()
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for job in (lambda: Generator.load(folder, threads=1).generate("say: a", max_new_tokens=2), lambda: verify(folder)):
        with contextlib.suppress(LoraFtError):
            job()

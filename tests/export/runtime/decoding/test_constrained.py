"""Constrained answers equal those of transformers with a prefix function, in every search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lora_ft.core.trie import Trie
from lora_ft.export.precision import parse
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.cache import Cache, Source
from tests.export.oracle import END, make_bundle, redraw
from tests.export.runtime.cases import Pair, answers, words
from tests.tiny import save_tiny_t5

LIMIT = 9
# of many shapes: one begins another, some share a start, one stands alone
SETS: dict[str, list[list[int]]] = {
    "mixed": [[5, 6], [5, 6, 7], [5, 8], [9], [9, 9, 9, 9], [10, 11, 12, 13, 14], [3]],
    "a shared start": [[4, 20, 6, 7], [4, 20, 6, 30, 31], [4, 20, 40]],
    "one": [[7, 8, 9]],
    "two": [[20], [21]],
    "many": [[a, b] for a in range(10, 30) for b in range(30, 36)],
}


def constrained(pair: Pair, texts: list[str], allowed: list[list[int]], **options: Any) -> Any:
    trie = Trie(allowed, END)
    return pair.generate(texts, prefix_allowed_tokens_fn=lambda _, tokens: trie.after(tokens[1:].tolist()), **options)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.8}, {"output_scores": True}], ids=str)
def test_greedy_answers_equal_those_of_transformers(pair: Pair, name: str, options: dict[str, Any]) -> None:
    allowed, texts = SETS[name], words(0, 12)
    settings = {"max_new_tokens": LIMIT, **options}
    edits = {key: value for key, value in settings.items() if key != "output_scores"}
    actual = pair.made(texts, allowed=allowed, **settings)
    assert actual == answers(constrained(pair, texts, allowed, **edits).sequences)
    assert {tuple(row[:-1]) for row in actual} <= set(map(tuple, allowed)) and all(row[-1] == END for row in actual)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beams_equal_those_of_transformers(pair: Pair, name: str, beams: int, penalty: float) -> None:
    allowed, texts = SETS[name], words(1)
    options = {"num_beams": beams, "num_return_sequences": min(beams, len(allowed)), "max_new_tokens": LIMIT}
    options["length_penalty"] = penalty
    actual = pair.answer(texts, allowed=allowed, output_scores=True, **options)
    expected = constrained(pair, texts, allowed, **options)
    assert [answer.tokens.tolist() for answer in actual] == answers(expected.sequences)
    scores = np.array([answer.scores for answer in actual])[:, 0]
    np.testing.assert_allclose(scores, expected.sequences_scores.numpy(), rtol=1e-4, atol=1e-4)


def test_exhaustive_beams_find_the_likeliest_allowed_answers(unsure: Pair) -> None:
    allowed = SETS["mixed"]
    ids, mask = unsure.encode(["some words"])
    totals = []
    for answer in allowed:
        tokens = np.array([[*answer, END]])
        logits = unsure.generator.score(ids, mask, tokens)[0].astype(np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        totals.append(sum(log_probs[i, token] for i, token in enumerate(tokens[0])))
    ranked = [allowed[i] for i in np.argsort(totals)[::-1]]
    answers = unsure.made(
        ["some words"],
        allowed=allowed,
        num_beams=len(allowed),
        num_return_sequences=len(allowed),
        length_penalty=0.0,
        max_new_tokens=LIMIT,
        early_stopping="never",
    )
    assert [row[:-1] for row in answers] == ranked


def test_samples_are_allowed_and_varied(unsure: Pair) -> None:
    options = {"do_sample": True, "num_return_sequences": 50, "max_new_tokens": LIMIT}
    answers = unsure.made(["ab", "c"], allowed=SETS["mixed"], **options)
    distinct = {tuple(row[:-1]) for row in answers}
    assert distinct <= set(map(tuple, SETS["mixed"])) and len(distinct) > 3


def test_decided_rows_leave_the_batch(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, allowed = words(3, 12), SETS["mixed"]
    alone = [pair.made([text], allowed=allowed, max_new_tokens=LIMIT)[0] for text in texts]
    model, calls = pair.generator.model, []
    logits = model.logits

    def watched(source: Source, cache: Cache, tokens: np.ndarray, **keys: Any) -> np.ndarray:
        calls.append((source.rows, cache.rows, len(tokens)))
        return logits(source, cache, tokens, **keys)

    monkeypatch.setattr(model, "logits", watched)
    assert pair.made(texts, allowed=allowed, max_new_tokens=LIMIT) == alone
    assert all(a == b == c for a, b, c in calls)
    trie = Trie(allowed, END)
    choices = [sum(len(trie.after(row[:i])) > 1 for i in range(len(row))) for row in alone]
    assert [rows for rows, _, _ in calls] == [sum(n > turn for n in choices) for turn in range(max(choices))]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def labeled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Generator, Generator]:
    """Return a bundle of a task with labels, and one of the same weights without labels."""
    folder = tmp_path_factory.mktemp("labels")
    checkpoint = redraw(save_tiny_t5(folder / "checkpoint"), seed=14, end=3)
    for name, labels in {"labels": ("a word", "a", "no", "never"), "plain": ()}.items():
        make_bundle(checkpoint, folder / name, labels=labels, precisions=[parse(request.param)])
    return Generator.load(folder / "labels", threads=1), Generator.load(folder / "plain", threads=1)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"output_scores": True}], ids=str)
def test_labels_of_a_bundle_are_chosen_as_from_the_whole_head(
    labeled: tuple[Generator, Generator], options: dict[str, Any]
) -> None:
    bundle, plain = labeled
    actual = bundle.answer(words(3, 12), **options)
    expected = plain.answer(words(3, 12), allowed=bundle.settings.allowed, **options)
    assert len({tuple(answer.tokens) for answer in actual}) > 1
    for answer, other in zip(actual, expected, strict=True):
        assert np.array_equal(answer.tokens, other.tokens)
        assert answer.scores is None or (other.scores is not None and np.array_equal(answer.scores, other.scores))


def test_the_whole_head_is_read_only_if_other_answers_are_allowed(labeled: tuple[Generator, Generator]) -> None:
    bundle, plain = Generator.load(labeled[0].folder, threads=1), labeled[1]
    bundle.answer(words(3, 12))
    names = {name for name, _ in bundle.model._sessions}
    assert "labels" in names and "step" not in names
    for allowed in (SETS["mixed"], SETS["two"], ()):
        actual, expected = (each.answer(words(3, 12), allowed=allowed) for each in (bundle, plain))
        assert [answer.tokens.tolist() for answer in actual] == [answer.tokens.tolist() for answer in expected]
    assert "step" in {name for name, _ in bundle.model._sessions}


def test_a_shared_prefix_needs_no_step(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    logits = pair.generator.model.logits

    def watched(source: Source, cache: Cache, tokens: np.ndarray, **keys: Any) -> np.ndarray:
        calls.append(tokens.shape[1])
        return logits(source, cache, tokens, **keys)

    monkeypatch.setattr(pair.generator.model, "logits", watched)
    pair.made(["ab"], allowed=SETS["one"], max_new_tokens=LIMIT)
    assert calls == []
    pair.made(["ab"], allowed=[[4, 5, 6], [4, 5, 7]], max_new_tokens=LIMIT)
    assert calls == [3]

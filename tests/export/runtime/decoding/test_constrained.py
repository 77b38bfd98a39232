"""Answers among allowed ones are those that transformers makes under a prefix function, however they are searched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lora_ft.core.trie import Trie
from lora_ft.export.runtime.model import Cache, Source
from tests.export.oracle import END
from tests.export.runtime.cases import Pair, answers, words

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
def test_greedy_answers_are_those_of_transformers(pair: Pair, name: str, options: dict[str, Any]) -> None:
    allowed, texts = SETS[name], words(0, 12)
    given = {"max_new_tokens": LIMIT, **options}
    edits = {key: value for key, value in given.items() if key != "output_scores"}
    made = pair.made(texts, allowed=allowed, **given)
    assert made == answers(constrained(pair, texts, allowed, **edits).sequences)
    assert {tuple(row[:-1]) for row in made} <= set(map(tuple, allowed)) and all(row[-1] == END for row in made)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beams_are_those_of_transformers(pair: Pair, name: str, beams: int, penalty: float) -> None:
    allowed, texts = SETS[name], words(1)
    options = {"num_beams": beams, "num_return_sequences": min(beams, len(allowed)), "max_new_tokens": LIMIT}
    options["length_penalty"] = penalty
    made = pair.answer(texts, allowed=allowed, output_scores=True, **options)
    expected = constrained(pair, texts, allowed, **options)
    assert [answer.tokens.tolist() for answer in made] == answers(expected.sequences)
    scores = np.array([answer.scores for answer in made])[:, 0]
    np.testing.assert_allclose(scores, expected.sequences_scores.numpy(), rtol=1e-4, atol=1e-4)


def test_beams_for_all_find_the_likeliest_of_the_allowed(unsure: Pair) -> None:
    allowed = SETS["mixed"]
    ids, mask = unsure.encode(["some words"])
    totals = []
    for answer in allowed:
        tokens = np.array([[*answer, END]])
        logits = unsure.generator.score(ids, mask, tokens)[0].astype(np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        totals.append(sum(log_probs[i, token] for i, token in enumerate(tokens[0])))
    ranked = [allowed[i] for i in np.argsort(totals)[::-1]]
    made = unsure.made(
        ["some words"],
        allowed=allowed,
        num_beams=len(allowed),
        num_return_sequences=len(allowed),
        length_penalty=0.0,
        max_new_tokens=LIMIT,
        early_stopping="never",
    )
    assert [row[:-1] for row in made] == ranked


def test_samples_are_allowed_and_draw_several(unsure: Pair) -> None:
    options = {"do_sample": True, "num_return_sequences": 50, "max_new_tokens": LIMIT}
    made = unsure.made(["ab", "c"], allowed=SETS["mixed"], **options)
    said = {tuple(row[:-1]) for row in made}
    assert said <= set(map(tuple, SETS["mixed"])) and len(said) > 3


def test_answers_do_not_depend_on_the_batch_and_leave_it_when_decided(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, allowed = words(3, 12), SETS["mixed"]
    alone = [pair.made([text], allowed=allowed, max_new_tokens=LIMIT)[0] for text in texts]
    model, asked = pair.generator.model, []
    logits = model.logits

    def watched(source: Source, cache: Cache, tokens: np.ndarray, **keys: Any) -> np.ndarray:
        asked.append((source.rows, cache.rows, len(tokens)))
        return logits(source, cache, tokens, **keys)

    monkeypatch.setattr(model, "logits", watched)
    assert pair.made(texts, allowed=allowed, max_new_tokens=LIMIT) == alone
    assert all(a == b == c for a, b, c in asked)
    trie = Trie(allowed, END)
    choices = [sum(len(trie.after(row[:i])) > 1 for i in range(len(row))) for row in alone]
    assert [rows for rows, _, _ in asked] == [sum(n > turn for n in choices) for turn in range(max(choices))]


def test_a_start_that_all_share_takes_no_step_of_its_own(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    logits = pair.generator.model.logits

    def watched(source: Source, cache: Cache, tokens: np.ndarray, **keys: Any) -> np.ndarray:
        asked.append(tokens.shape[1])
        return logits(source, cache, tokens, **keys)

    monkeypatch.setattr(pair.generator.model, "logits", watched)
    pair.made(["ab"], allowed=SETS["one"], max_new_tokens=LIMIT)
    assert asked == []
    pair.made(["ab"], allowed=[[4, 5, 6], [4, 5, 7]], max_new_tokens=LIMIT)
    assert asked == [3]

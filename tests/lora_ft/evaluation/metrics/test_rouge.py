"""ROUGE equals that of rouge-score for each row, without the network."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from lora_ft.data.sentences import SPLITTER
from lora_ft.evaluation.metrics import measure
from lora_ft.tasks.evaluate import Evaluate
from lora_ft.tasks.metric_names import ROUGE

PREDICTIONS = [
    "The cats were sleeping. Anna called the doctor.",
    "A meeting on Monday",
    "nothing in common",
    "",
    "the same words",
]
REFERENCES = [
    ["Anna calls a doctor. The cat sleeps."],
    ["They meet on Monday at ten.", "A meeting is held on Monday"],
    ["wholly other text"],
    ["some text"],
    ["the same words"],
]


def rouge(predictions: list[str], references: list[list[str]], **settings: Any) -> dict[str, np.ndarray]:
    """Return scores by row."""
    scores = measure(["rouge"], predictions, references, Evaluate(**settings))
    return {name: scored.rows for name, scored in scores.items()}


@pytest.mark.parametrize("use_stemmer", [True, False])
def test_row_scores_equal_those_of_rouge_score(use_stemmer: bool) -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=use_stemmer)
    scores = rouge(PREDICTIONS, REFERENCES, use_stemmer=use_stemmer)
    assert set(scores) == set(ROUGE)
    for name in ("rouge1", "rouge2", "rougeL"):
        expected = [
            max(100 * scorer.score(reference, prediction)[name].fmeasure for reference in texts)
            for prediction, texts in zip(PREDICTIONS, REFERENCES, strict=True)
        ]
        assert scores[name] == pytest.approx(expected)


def test_the_stemmer_changes_scores() -> None:
    with_stemmer, without = (rouge(PREDICTIONS[:1], REFERENCES[:1], use_stemmer=use)["rouge1"] for use in (True, False))
    assert with_stemmer[0] > without[0]


def test_scores_are_between_0_and_100() -> None:
    scores = rouge(PREDICTIONS, REFERENCES, use_stemmer=True)
    for name in ROUGE:
        assert scores[name][2] == scores[name][3] == 0
        assert scores[name][4] == pytest.approx(100)
        assert ((scores[name] >= 0) & (scores[name] <= 100)).all()


def test_each_type_uses_its_best_reference() -> None:
    prediction, first, second = "a b c d", "d c b a x", "a b"
    alone = [rouge([prediction], [[reference]], use_stemmer=False) for reference in (first, second)]
    both = rouge([prediction], [[first, second]], use_stemmer=False)
    for name in ROUGE:
        assert both[name][0] == max(scores[name][0] for scores in alone)
    assert both["rouge1"][0] == alone[0]["rouge1"][0] and both["rouge2"][0] == alone[1]["rouge2"][0]


def test_rouge_lsum_compares_sentences_and_rouge_l_whole_texts() -> None:
    scores = rouge(
        ["The dog barks loudly. The cat sleeps here."],
        [["The cat sleeps here. The dog barks loudly."]],
        use_stemmer=True,
    )
    assert scores["rougeLsum"][0] == pytest.approx(100)
    assert scores["rougeL"][0] == pytest.approx(50)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        (["The dog barks loudly.", "The cat sleeps here."], ["The cat sleeps here while the dog barks loudly."]),
        (["The cat sleeps here while the dog barks loudly."], ["The dog barks loudly.", "The cat sleeps here."]),
    ],
)
def test_sentences_are_split_on_both_sides(prediction: list[str], reference: list[str]) -> None:
    scorer = RougeScorer(["rougeLsum"], use_stemmer=False)
    expected = scorer.score("\n".join(reference), "\n".join(prediction))["rougeLsum"].fmeasure
    scores = rouge([" ".join(prediction)], [[" ".join(reference)]], use_stemmer=False)
    assert scores["rougeLsum"][0] == pytest.approx(100 * expected)
    assert scores["rougeLsum"][0] > scores["rougeL"][0]


def test_no_socket_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert rouge(["one two"], [["one two"]], use_stemmer=True)["rouge1"] == pytest.approx([100])


@pytest.mark.parametrize("loader", ["nltk.tokenize.sent_tokenize", "nltk.data.find", "nltk.data.load"])
def test_scores_do_not_depend_on_installed_nltk_data(loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Dr. Smith left. He was late!"], [["He was late! Dr. Smith left."]]
    expected = {name: rows.tolist() for name, rows in rouge(*texts).items()}

    def fail(*_: Any, **__: Any) -> list[str]:
        raise LookupError("punkt_tab")

    monkeypatch.setattr(loader, fail)
    assert {name: rows.tolist() for name, rows in rouge(*texts).items()} == expected
    assert expected["rougeLsum"] == [pytest.approx(100)]


def test_the_signature_names_the_splitter_and_its_version() -> None:
    assert all(SPLITTER in score.how for score in measure(["rouge"], ["a"], [["a"]], Evaluate()).values())

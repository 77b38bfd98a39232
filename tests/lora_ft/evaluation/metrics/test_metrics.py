"""All other metrics equal their reference implementations, with one reference and with several."""

from __future__ import annotations

import re
import string
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.evaluation.metrics import measure, score
from lora_ft.evaluation.metrics.f1 import squad_words
from lora_ft.evaluation.metrics.rougesu4 import f_measure, units
from lora_ft.tasks.evaluate import Evaluate
from lora_ft.tasks.metric_names import FROM_SOURCE, SCORES_OF

ANSWERS = ["The cat sat on the mat.", "A man, walking his dog", "", "same text here", "no words shared"]
SINGLE = [["The cat is on the mat."], ["A man walks the dog."], ["something"], ["same text here"], ["wholly other"]]
SEVERAL = [[*SINGLE[0], "There is a cat on the mat."], SINGLE[1], [*SINGLE[2], "else", "more"], *SINGLE[3:]]
OFFLINE = [name for name in SCORES_OF if name not in ("meteor", "bertscore", "structured", *FROM_SOURCE)]
some_words = st.lists(st.sampled_from("abcde"), max_size=9)


@pytest.mark.parametrize("references", [SINGLE, SEVERAL])
@pytest.mark.parametrize(("name", "oracle"), [("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)])
def test_bleu_and_chrf_equal_those_of_sacrebleu(name: str, oracle: Any, references: list[list[str]]) -> None:
    longest = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(longest)]
    scored = score(name, ANSWERS, references, Evaluate())
    assert scored.value == pytest.approx(oracle(ANSWERS, streams).score)
    assert scored.rows.shape == (len(ANSWERS),)
    assert "version" in scored.how


def test_row_scores_of_bleu_and_chrf_are_sentence_scores() -> None:
    for name, oracle in (("bleu", sacrebleu.sentence_bleu), ("chrf", sacrebleu.sentence_chrf)):
        scored = score(name, ANSWERS, SEVERAL, Evaluate())
        expected = [oracle(answer, texts).score for answer, texts in zip(ANSWERS, SEVERAL, strict=True)]
        assert scored.rows == pytest.approx(np.array(expected))


def test_equal_japanese_texts_score_100() -> None:
    text = "今日は天気がいいです。"
    scores = measure(["bleu", "chrf"], [text], [[text]], Evaluate(language="ja"))
    assert [score.value for score in scores.values()] == pytest.approx([100, 100])


@given(st.lists(some_words, min_size=1, max_size=3), some_words)
def test_the_best_of_several_references_counts(references: list[list[str]], answer: list[str]) -> None:
    texts, prediction = [" ".join(words) for words in references], " ".join(answer)
    for name in ("rougeSU4", "f1", "exact_match"):
        alone = [score(name, [prediction], [[text]], Evaluate()).value for text in texts]
        assert score(name, [prediction], [texts], Evaluate()).value == max(alone)


# Copied from SQuAD's evaluate-v2.0.py, with the names used there.
def squad_normalize(s: str) -> str:
    s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", s).split())


def squad_compute_f1(gold: str, pred: str) -> float:
    gold_toks, pred_toks = squad_normalize(gold).split(), squad_normalize(pred).split()
    num_same = sum((Counter(gold_toks) & Counter(pred_toks)).values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = 1.0 * num_same / len(pred_toks), 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


squad_texts = st.lists(
    st.sampled_from(["a", "The", "cat", "cat's", "naïve", "12%", "an-ox", ",", "..."]), max_size=6
).map(" ".join)


@given(squad_texts | st.text(max_size=20), squad_texts | st.text(max_size=20))
def test_f1_equals_that_of_the_squad_script(answer: str, reference: str) -> None:
    assert squad_words(answer) == squad_normalize(answer).split()
    expected = 100 * squad_compute_f1(reference, answer)
    assert score("f1", [answer], [[reference]], Evaluate()).value == pytest.approx(expected)


def test_exact_match_ignores_only_surrounding_whitespace() -> None:
    scored = score(
        "exact_match", [" card arrival\n", "Card arrival", "x"], [["card arrival"]] * 2 + [["y", "x"]], Evaluate()
    )
    assert scored.rows.tolist() == [100, 0, 100]


POLICE = ["police", "killed", "the", "gunman"]


@pytest.mark.parametrize(
    ("answer", "skip", "with_single"),
    [
        # Lin 2004, 3.4: S2, S3, S4 against S1 have 3, 1, 2 of 6 pairs; S5 has none, but all four words (3.5).
        ("police kill the gunman", 3 / 6, 6 / 10),
        ("the gunman kill police", 1 / 6, 4 / 10),
        ("the gunman police killed", 2 / 6, 6 / 10),
        ("gunman the killed police", 0, 4 / 10),
    ],
)
def test_rouge_s_and_su_equal_the_values_in_the_paper(answer: str, skip: float, with_single: float) -> None:
    words = answer.split()
    for gap in (None, 4):
        assert f_measure(units(words, gap, single=False), units(POLICE, gap, single=False)) == pytest.approx(skip)
        assert f_measure(units(words, gap), units(POLICE, gap)) == pytest.approx(with_single)
    assert score("rougeSU4", [answer], [[" ".join(POLICE)]], Evaluate(use_stemmer=False)).value == pytest.approx(
        100 * with_single
    )


def test_skip_bigrams_with_a_gap_of_0_are_bigrams() -> None:
    assert units(list("abcd"), 0, single=False) == Counter([("a", "b"), ("b", "c"), ("c", "d")])


@given(some_words)
def test_skip_bigrams_are_all_pairs_with_at_most_four_words_between(words: list[str]) -> None:
    pairs = [(words[i], words[j]) for i, j in combinations(range(len(words)), 2) if j - i - 1 <= 4]
    assert units(words) == Counter(pairs) + Counter((word,) for word in words)


def test_rouge_su4_uses_the_stemmer_and_stop_words() -> None:
    pair = ["the cats"], [["a cat"]]
    assert score("rougeSU4", *pair, Evaluate(use_stemmer=False)).value == 0
    assert score("rougeSU4", *pair, Evaluate(stop_words=True)).value == 100


@pytest.mark.parametrize("name", OFFLINE)
def test_every_metric_returns_its_scores_from_0_to_100(name: str) -> None:
    scores = measure([name], ANSWERS, SEVERAL, Evaluate())
    assert tuple(scores) == SCORES_OF[name]
    for scored in scores.values():
        assert scored.rows[3] == pytest.approx(100) and scored.rows[2] == 0
        assert ((scored.rows >= 0) & (scored.rows <= 100 + 1e-9)).all() and 0 <= scored.value <= 100


def test_meteor_names_the_command_that_downloads_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(UsageError, match=r"WordNet data, which is not installed; python -m nltk.downloader wordnet"):
        measure(["meteor"], ANSWERS, SINGLE, Evaluate())
    with pytest.raises(UsageError, match=r"English only \(got evaluate.language=de\)"):
        measure(["meteor"], ANSWERS, SINGLE, Evaluate(language="de"))


def test_bertscore_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bert_score", None)
    with pytest.raises(UsageError, match=r"needs the package bert_score.*pip install bert-score"):
        measure(["bertscore"], ANSWERS, SINGLE, Evaluate(metrics=["bertscore"], bertscore_model="there"))

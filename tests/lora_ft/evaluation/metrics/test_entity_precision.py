"""Names and numbers of answers that their sources lack."""

from __future__ import annotations

import numpy as np
import pytest

from lora_ft.core.errors import UsageError
from lora_ft.evaluation.metrics import measure
from lora_ft.tasks.evaluate import Evaluate

SOURCE = "Anna: Bob, can you bring 3 cups?\nBob: sure, at 5 pm"
ANSWERS = ["Today Anna asked Bob for 3 cups.", "Today Eve asked Bob for 4 cups at 5.", "She asked him for cups."]
REFERENCES = [["Then Bob brings 3 cups."]] * 3


def test_unsupported_names_and_numbers_lower_the_score_and_are_listed() -> None:
    scores = measure(["entity_precision"], ANSWERS, REFERENCES, Evaluate(), [SOURCE] * 3)
    assert scores["entity_precision"].rows == pytest.approx([100, 50, np.nan], nan_ok=True)
    assert scores["entity_precision"].value == pytest.approx(75)
    assert scores["number_precision"].rows == pytest.approx([100, 50, np.nan], nan_ok=True)
    details = {key: values for score in scores.values() for key, values in score.details.items()}
    assert details == {"unsupported": [[], ["Eve", "4"], []]}
    assert "references: entity_precision 100.0, number_precision 100.0" in scores["entity_precision"].how
    estimate = scores["entity_precision"].estimate(seed=0, resamples=200)
    assert 50 <= estimate.low <= estimate.mean <= estimate.high <= 100


@pytest.mark.parametrize(
    ("language", "source", "answer"),
    [("de", "Anna holt 3 Tassen.", "Die Katze holt 3 Hunde."), ("ja", "トムは3個買った。", "メアリーは3個買った。")],
)
def test_names_are_not_scored_where_capital_letters_do_not_mark_them(language: str, source: str, answer: str) -> None:
    scores = measure(["entity_precision"], [answer], [[source]], Evaluate(language=language), [source])
    assert list(scores) == ["number_precision"]
    assert scores["number_precision"].value == 100
    assert f"names are not scored, since capital letters do not mark them here (language {language})" in (
        scores["number_precision"].how
    )


def test_answers_without_names_and_numbers_have_nothing_unsupported() -> None:
    scores = measure(["entity_precision"], ["hello"] * 2, [["hello"]] * 2, Evaluate(), [SOURCE] * 2)
    assert [score.value for score in scores.values()] == [100, 100]


def test_sources_are_needed() -> None:
    with pytest.raises(UsageError, match="entity_precision needs the sources"):
        measure(["entity_precision"], ANSWERS, REFERENCES, Evaluate())

"""The comparison of a bundle with PyTorch: it sees every kind of difference, and nothing but differences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import LoraFtError
from export.parity import TOLERANCE, Reference, Report, compare, require
from export.runtime import Generator
from tests.export.oracle import END, PAD, references

PASSING = Report(rows=3, tokens=9, identical_rows=3, largest_difference=1e-5, tolerance=1e-3)


@pytest.fixture(scope="module")
def answers(checkpoint: Path) -> list[Reference]:
    return list(references(checkpoint))


def test_pytorchs_answers_pass(generator: Generator, answers: list[Reference]) -> None:
    report = compare(generator, answers)
    assert report.passed
    assert report.rows == report.identical_rows == sum(len(answer.tokens) for answer in answers)
    assert report.tokens == sum(int((answer.tokens != PAD).sum()) for answer in answers)
    assert 0 < report.largest_difference < 1e-4
    assert report.tolerance == TOLERANCE
    require(report)


def test_answers_are_taken_one_at_a_time(generator: Generator, answers: list[Reference]) -> None:
    taken = iter(answers)

    def broken() -> Iterator[Reference]:
        yield next(taken)
        raise RuntimeError("the second")

    with pytest.raises(RuntimeError, match="the second"):
        compare(generator, broken())


def test_a_logit_that_differs_is_seen_by_its_size(generator: Generator, answers: list[Reference]) -> None:
    logits = answers[0].logits.copy()
    logits[0, 0, 17] += 0.5
    report = compare(generator, [replace(answers[0], logits=logits), *answers[1:]])
    assert report.largest_difference == pytest.approx(0.5, abs=1e-3)
    assert report.identical_rows == report.rows
    assert not report.passed


def test_a_logit_that_differs_is_seen_in_the_last_batch(generator: Generator, answers: list[Reference]) -> None:
    logits = answers[-1].logits.copy()
    logits[-1, 0, -1] -= 0.25
    report = compare(generator, [*answers[:-1], replace(answers[-1], logits=logits)])
    assert report.largest_difference == pytest.approx(0.25, abs=1e-3)


def test_logits_of_padding_do_not_matter(generator: Generator, answers: list[Reference]) -> None:
    answer = next(answer for answer in answers if (answer.tokens == PAD).any())
    logits = answer.logits + 100 * (answer.tokens == PAD)[..., None].astype(np.float32)
    assert compare(generator, [replace(answer, logits=logits)]).passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_logit_that_is_no_number_fails(generator: Generator, answers: list[Reference], value: float) -> None:
    logits = answers[0].logits.copy()
    logits[1, 0, 3] = value
    report = compare(generator, [replace(answers[0], logits=logits), *answers[1:]])
    assert not report.passed
    with pytest.raises(LoraFtError):
        require(report)


def test_one_token_that_differs_fails_its_row_only(generator: Generator, answers: list[Reference]) -> None:
    tokens = answers[0].tokens.copy()
    tokens[2, 1] = tokens[2, 1] % 70 + 5
    report = compare(generator, [replace(answers[0], tokens=tokens)])
    assert report.identical_rows == report.rows - 1
    assert not report.passed


def test_an_answer_that_goes_on_longer_fails(generator: Generator, answers: list[Reference]) -> None:
    longer = np.pad(answers[0].tokens, ((0, 0), (0, 1)), constant_values=9)
    logits = np.pad(answers[0].logits, ((0, 0), (0, 1), (0, 0)))
    assert not compare(generator, [replace(answers[0], tokens=longer, logits=logits)]).passed


def test_an_answer_that_stops_sooner_fails(generator: Generator, answers: list[Reference]) -> None:
    shorter = replace(answers[0], tokens=answers[0].tokens[:, :2], logits=answers[0].logits[:, :2])
    report = compare(generator, [shorter])
    assert report.identical_rows < report.rows
    assert not report.passed


def test_more_padding_than_needed_is_the_same_answer(generator: Generator, answers: list[Reference]) -> None:
    wide = np.pad(answers[0].tokens, ((0, 0), (0, 3)), constant_values=PAD)
    logits = np.pad(answers[0].logits, ((0, 0), (0, 3), (0, 0)))
    assert compare(generator, [replace(answers[0], tokens=wide, logits=logits)]).passed


def test_the_limit_of_the_search_is_the_references(generator: Generator, answers: list[Reference]) -> None:
    first = replace(answers[0], tokens=answers[0].tokens[:, :1], logits=answers[0].logits[:, :1], max_new_tokens=1)
    assert (first.tokens != END).any()
    assert compare(generator, [first]).passed


def test_comparing_nothing_does_not_pass(generator: Generator) -> None:
    report = compare(generator, [])
    assert report.rows == 0
    assert not report.passed


@pytest.mark.parametrize(
    "change",
    [
        {"identical_rows": 2},
        {"largest_difference": 1.1e-3},
        {"largest_difference": float("nan")},
        {"rows": 0, "identical_rows": 0},
    ],
)
def test_a_report_that_fails_is_an_error_that_says_why(change: dict[str, Any]) -> None:
    report = replace(PASSING, **change)
    assert not report.passed
    with pytest.raises(LoraFtError) as caught:
        require(report)
    assert caught.value.exit_code == 1
    assert str(report) in caught.value.message


def test_the_tolerance_may_just_be_reached() -> None:
    assert replace(PASSING, largest_difference=1e-3).passed


def test_a_report_reads_as_a_sentence_and_as_a_record() -> None:
    report = replace(PASSING, identical_rows=2)
    assert str(report) == "2 of 3 rows give PyTorch's text, logits differ by at most 1e-05"
    assert report.as_dict() == {
        "rows": 3,
        "tokens": 9,
        "identical_rows": 2,
        "largest_difference": 1e-5,
        "tolerance": 1e-3,
    }

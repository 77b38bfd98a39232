"""The comparison of a bundle with PyTorch detects every kind of difference and no others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_ft.core.errors import LoraFtError
from lora_ft.export.parity import TOLERANCE, Probe, Reference, Report, answered, compare, identical_rows, require
from lora_ft.export.runtime import Generator
from tests.export.oracle import END, PAD, SPECIAL, references

PASSING = Report(rows=3, tokens=9, identical_rows=3, largest_difference=1e-5, lookup_rows=3, tolerance=1e-3)


@pytest.fixture(scope="module")
def answers(checkpoint: Path) -> list[Reference]:
    return list(references(checkpoint))


def test_pytorchs_answers_pass(generator: Generator, answers: list[Reference]) -> None:
    report = compare(generator, answers)
    assert report.passed
    assert report.rows == report.identical_rows == sum(len(answer.tokens) for answer in answers)
    assert report.tokens == sum(int(answered(answer.tokens, SPECIAL).sum()) for answer in answers)
    assert 0 < report.largest_difference < 1e-4
    assert report.tolerance == TOLERANCE
    assert report.lookup_rows == report.rows
    assert report.lookup_is_lossless
    require(report)


def test_references_are_read_one_by_one(generator: Generator, answers: list[Reference]) -> None:
    iterator = iter(answers)

    def broken() -> Iterator[Reference]:
        yield next(iterator)
        raise RuntimeError("the second")

    with pytest.raises(RuntimeError, match="the second"):
        compare(generator, broken())


def test_the_largest_difference_is_reported(generator: Generator, answers: list[Reference]) -> None:
    logits = answers[0].logits.copy()
    logits[0, 0, 17] += 0.5
    report = compare(generator, [replace(answers[0], logits=logits), *answers[1:]])
    assert report.largest_difference == pytest.approx(0.5, abs=1e-3)
    assert report.identical_rows == report.rows
    assert not report.passed


def test_a_difference_in_the_last_batch_is_reported(generator: Generator, answers: list[Reference]) -> None:
    logits = answers[-1].logits.copy()
    logits[-1, 0, -1] -= 0.25
    report = compare(generator, [*answers[:-1], replace(answers[-1], logits=logits)])
    assert report.largest_difference == pytest.approx(0.25, abs=1e-3)


def test_logits_of_padding_do_not_matter(generator: Generator, answers: list[Reference]) -> None:
    answer = next(answer for answer in answers if not answered(answer.tokens, SPECIAL).all())
    noise = np.where(answered(answer.tokens, SPECIAL), 0, 100).astype(np.float32)
    logits = answer.logits + noise[..., None]
    assert compare(generator, [replace(answer, logits=logits)]).passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_nan_logit_fails(generator: Generator, answers: list[Reference], value: float) -> None:
    logits = answers[0].logits.copy()
    logits[1, 0, 3] = value
    report = compare(generator, [replace(answers[0], logits=logits), *answers[1:]])
    assert not report.passed
    with pytest.raises(LoraFtError):
        require(report)


def test_a_different_token_fails_only_its_row(generator: Generator, answers: list[Reference]) -> None:
    tokens = answers[0].tokens.copy()
    tokens[2, 1] = tokens[2, 1] % 70 + 5
    report = compare(generator, [replace(answers[0], tokens=tokens)])
    assert report.identical_rows == report.rows - 1
    assert not report.passed


def test_a_longer_answer_fails(generator: Generator, answers: list[Reference]) -> None:
    longer = np.pad(answers[0].tokens, ((0, 0), (0, 1)), constant_values=9)
    logits = np.pad(answers[0].logits, ((0, 0), (0, 1), (0, 0)))
    assert not compare(generator, [replace(answers[0], tokens=longer, logits=logits)]).passed


def test_a_shorter_answer_fails(generator: Generator, answers: list[Reference]) -> None:
    shorter = replace(answers[0], tokens=answers[0].tokens[:, :2], logits=answers[0].logits[:, :2])
    report = compare(generator, [shorter])
    assert report.identical_rows < report.rows
    assert not report.passed


def test_extra_padding_is_ignored(generator: Generator, answers: list[Reference]) -> None:
    wide = np.pad(answers[0].tokens, ((0, 0), (0, 3)), constant_values=PAD)
    logits = np.pad(answers[0].logits, ((0, 0), (0, 3), (0, 0)))
    assert compare(generator, [replace(answers[0], tokens=wide, logits=logits)]).passed


def test_the_limit_comes_from_the_reference(generator: Generator, answers: list[Reference]) -> None:
    first = replace(answers[0], tokens=answers[0].tokens[:, :1], logits=answers[0].logits[:, :1], max_new_tokens=1)
    assert (first.tokens != END).any()
    assert compare(generator, [first]).passed


def test_an_empty_comparison_fails(generator: Generator) -> None:
    report = compare(generator, [])
    assert report.rows == 0
    assert not report.passed
    assert not report.lookup_is_lossless


def test_an_answer_that_prompt_lookup_changes_is_counted(
    generator: Generator, answers: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is not a difference from PyTorch, but prompt lookup stays off."""
    plain = generator.generate_ids

    def wrong(*args: Any, prompt_lookup: bool, **options: Any) -> np.ndarray:
        tokens = plain(*args, prompt_lookup=False, **options).copy()
        tokens[1, 2] += prompt_lookup
        return tokens

    monkeypatch.setattr(generator, "generate_ids", wrong)
    report = compare(generator, answers)
    assert report.lookup_rows == report.rows - len(answers)
    assert not report.lookup_is_lossless
    assert report.passed


@pytest.fixture
def probe(answers: list[Reference]) -> Probe:
    return Probe.of(answers[1], SPECIAL)


def test_a_probe_stores_unpadded_answers_and_log_probabilities(answers: list[Reference], probe: Probe) -> None:
    """A probe stores unpadded sources and answers, and the log-probabilities of the answers."""
    answer = answers[1]
    log_probs = torch.log_softmax(torch.from_numpy(answer.logits), -1).numpy()
    assert probe.max_new_tokens == answer.max_new_tokens
    assert len(probe.sources) == len(probe.tokens) == len(probe.log_probs) == len(answer.tokens)
    for i, (source, tokens, scores) in enumerate(zip(probe.sources, probe.tokens, probe.log_probs, strict=True)):
        assert source == answer.input_ids[i, answer.attention_mask[i] > 0].tolist()
        assert tokens == SPECIAL.trim(answer.tokens[i]).tolist()
        np.testing.assert_allclose(scores, log_probs[i, np.arange(len(tokens)), tokens], atol=1e-5)


def test_a_probe_keeps_answers_with_padding_inside(generator: Generator, answers: list[Reference]) -> None:
    """A model may generate the padding token like any other token."""
    answer = next(answer for answer in answers if any(PAD in SPECIAL.trim(row)[:-1] for row in answer.tokens))
    probe = Probe.of(answer, SPECIAL)
    assert probe.tokens == [SPECIAL.trim(row).tolist() for row in answer.tokens]
    assert probe.check(generator).passed


def test_a_probe_is_written_and_read(probe: Probe, tmp_path: Path) -> None:
    probe.write(tmp_path / "probe.json")
    assert Probe.read(tmp_path / "probe.json") == probe


def test_a_probe_passes_on_its_own_bundle(generator: Generator, probe: Probe) -> None:
    report = probe.check(generator)
    assert report.passed and report.lookup_is_lossless
    assert report.rows == len(probe.sources)
    assert report.tokens == sum(map(len, probe.tokens))
    assert report.largest_difference < 1e-4


@pytest.mark.parametrize("row", [0, -1])
def test_a_probe_detects_a_different_answer(generator: Generator, probe: Probe, row: int) -> None:
    tokens = [list(answer) for answer in probe.tokens]
    tokens[row][1] = tokens[row][1] % 70 + 5
    report = replace(probe, tokens=tokens).check(generator)
    assert report.identical_rows == report.rows - 1
    assert not report.passed


@pytest.mark.parametrize("row", [0, -1])
def test_a_probe_detects_a_different_probability(generator: Generator, probe: Probe, row: int) -> None:
    log_probs = [list(scores) for scores in probe.log_probs]
    log_probs[row][-1] -= 0.25
    report = replace(probe, log_probs=log_probs).check(generator)
    assert report.largest_difference == pytest.approx(0.25, abs=1e-3)
    assert report.identical_rows == report.rows
    assert not report.passed


@pytest.mark.parametrize(
    ("a", "b", "count"),
    [
        ([[5, 1, 0], [7, 8, 1]], [[5, 1, 0], [7, 8, 1]], 2),
        ([[5, 1, 0], [7, 8, 1]], [[5, 1], [7, 8]], 1),
        ([[5, 1], [7, 1]], [[5, 1, 0, 0], [7, 1, 0, 2]], 2),
        ([[5, 1]], [[6, 1]], 0),
        (np.empty((2, 0)), [[0, 0], [0, 3]], 1),
    ],
)
def test_identical_rows_ignores_padding(a: Any, b: Any, count: int) -> None:
    assert identical_rows(np.array(a), np.array(b), SPECIAL) == count
    assert identical_rows(np.array(b), np.array(a), SPECIAL) == count


@pytest.mark.parametrize(
    "change",
    [
        {"identical_rows": 2},
        {"largest_difference": 1.1e-3},
        {"largest_difference": float("nan")},
        {"rows": 0, "identical_rows": 0},
    ],
)
def test_a_failed_report_raises_an_error_with_its_reason(change: dict[str, Any]) -> None:
    report = replace(PASSING, **change)
    assert not report.passed
    with pytest.raises(LoraFtError) as caught:
        require(report)
    assert caught.value.exit_code == 1
    assert str(report) in caught.value.message


def test_a_difference_equal_to_the_tolerance_passes() -> None:
    assert replace(PASSING, largest_difference=1e-3).passed


def test_a_report_reads_as_a_sentence_and_as_a_record() -> None:
    report = replace(PASSING, identical_rows=2)
    assert str(report) == "2 of 3 rows match PyTorch's text, logits differ by at most 1e-05"
    assert report.as_dict() == {
        "rows": 3,
        "tokens": 9,
        "identical_rows": 2,
        "largest_difference": 1e-5,
        "lookup_rows": 3,
        "tolerance": 1e-3,
        "divergence": 0.0,
    }


def test_empty_answers_have_no_divergence(generator: Generator, answers: list[Reference]) -> None:
    """A random model may generate only padding, and the manifest must not contain NaN."""
    (first, *_) = answers
    empty = replace(first, tokens=np.full_like(first.tokens, PAD))
    assert compare(generator, [empty]).divergence == 0.0

"""Minimum-Bayes-risk decoding: the answer is one of the samples of its seed, chosen by the mean utility."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_ft.core.consensus import chosen
from lora_ft.core.errors import UsageError
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.runtime import Generator
from lora_ft.models.backends import TorchBackend
from tests.export.oracle import SPECIAL, TEXTS, torch_model

SAMPLING: dict[str, Any] = {"do_sample": True, "seed": 5, "top_k": 0, "temperature": 2.0, "max_new_tokens": 9}


@pytest.mark.parametrize("utility", ["rouge1", "rougeL"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_answer_is_the_consensus_of_the_samples(generator: Generator, utility: str, batch_size: int) -> None:
    samples = generator.answer(TEXTS, **SAMPLING, num_return_sequences=6, batch_size=batch_size)
    answers = generator.answer(TEXTS, **SAMPLING, mbr=6, utility=utility, batch_size=batch_size)
    for i, answer in enumerate(answers):
        own = [sample.tokens for sample in samples[6 * i : 6 * i + 6]]
        assert np.array_equal(answer.tokens, own[chosen(own, utility, SPECIAL)])


def test_one_sample_is_sampling(generator: Generator) -> None:
    assert generator.generate(TEXTS, **SAMPLING, mbr=1) == generator.generate(TEXTS, **SAMPLING)


@pytest.mark.parametrize("beams", [{}, {"num_beams": 2}])
def test_a_consensus_needs_samples(generator: Generator, beams: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"mbr has no effect without sampling .*do_sample=true"):
        generator.generate(TEXTS, mbr=4, **beams)
    with pytest.raises(UsageError, match="mbr has no effect"):
        "".join(generator.stream(TEXTS[0], mbr=4, **beams))
    assert generator.generate(TEXTS, mbr=4, do_sample=False, **beams) == generator.generate(TEXTS, **beams)
    with pytest.raises(UsageError, match="do_sample and num_beams"):
        generator.generate(TEXTS, **SAMPLING | {"num_beams": 2}, mbr=4)


def test_a_seed_repeats_the_answers(generator: Generator) -> None:
    first, second = (generator.generate(TEXTS, **SAMPLING, mbr=4) for _ in range(2))
    assert first == second
    assert first != generator.generate(TEXTS, **SAMPLING | {"seed": 6}, mbr=4)
    alone = generator.generate(TEXTS[0], **SAMPLING, mbr=4)
    assert "".join(generator.stream(TEXTS[0], **SAMPLING, mbr=4)) == alone[0]


def test_torch_chooses_in_the_same_way(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TorchBackend(torch_model(checkpoint), Tokenizer(checkpoint / "tokenizer.json"), 48)
    seen: list[list[np.ndarray]] = []

    def last(own: list[np.ndarray], utility: str, special: Any) -> int:
        assert utility == "rougeL"
        seen.append(own)
        return len(own) - 1

    monkeypatch.setattr("lora_ft.models.backends.chosen", last)
    answers = backend.generate(TEXTS, SAMPLING | {"mbr": 3, "utility": "rougeL"}, batch_size=4)
    assert [len(own) for own in seen] == [3] * len(TEXTS)
    texts = {backend.tokenizer.decode([own[-1]])[0] for own in seen}
    assert {answer.text for answer in answers} == texts


def test_other_options_are_refused(generator: Generator) -> None:
    for options in ({"num_return_sequences": 2}, {"utility": "bleu"}, {"mbr": -1}):
        with pytest.raises(UsageError):
            generator.generate(TEXTS, **SAMPLING | {"mbr": 3} | options)

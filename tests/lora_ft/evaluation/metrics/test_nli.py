"""Entailment by a tiny classifier with random weights, made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from lora_ft.core.errors import UsageError
from lora_ft.data.sentences import split_sentences
from lora_ft.evaluation.metrics import measure, require
from lora_ft.evaluation.metrics.statistics import Scored
from lora_ft.tasks.evaluate import Evaluate

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "the", "cat", "sat", "on", "a", "mat", "dog", "ran", "it", "was"]
LABELS = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
SOURCE = "The cat sat. A dog ran. It was the mat."
ANSWERS = ["A cat sat. The dog ran.", "It ran on a mat.", ""]


def save_model(folder: Path, labels: list[str] = LABELS, kind: str = "bert") -> Path:
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
        pad_token_id=0,
        id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["bert", "roberta", "deberta-v2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("nli"), kind=request.param)


def settings(model: Path, **more: Any) -> Evaluate:
    return Evaluate(metrics=["nli"], nli_model=str(model), **more)


def entailed(model: Path, answers: list[str], source: str = SOURCE, **more: Any) -> Scored:
    sources = [source] * len(answers)
    return measure(["nli"], answers, [["-"]] * len(answers), settings(model, **more), sources)["entailment"]


def probability(model: Path, window: str, sentence: str) -> float:
    """Return the probability of entailment of one pair, computed alone."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.inference_mode():
        return float(classifier(**tokenizer(window, sentence, return_tensors="pt")).logits.softmax(-1)[0, 2])


def test_the_best_source_sentence_counts_for_each_sentence_of_the_answer(model: Path) -> None:
    scored = entailed(model, ANSWERS)
    for row, answer in enumerate(ANSWERS[:2]):
        best = [
            max(probability(model, premise, sentence) for premise in split_sentences(SOURCE))
            for sentence in split_sentences(answer)
        ]
        assert scored.rows[row] == pytest.approx(100 * np.mean(best), abs=1e-3)
        unlikely = [text for text, value in zip(split_sentences(answer), best, strict=True) if value < 0.5]
        assert scored.details["unentailed"][row] == unlikely
    assert scored.rows[2] == 0
    assert str(model) in scored.how and "SummaC-ZS" in scored.how


def test_windows_are_consecutive_sentences(model: Path) -> None:
    windows = ["The cat sat. A dog ran.", "A dog ran. It was the mat."]
    best = max(probability(model, window, ANSWERS[1]) for window in windows)
    assert entailed(model, [ANSWERS[1]], nli_window=2).rows[0] == pytest.approx(100 * best, abs=1e-3)
    whole = probability(model, SOURCE, ANSWERS[1])
    assert entailed(model, [ANSWERS[1]], nli_window=9).rows[0] == pytest.approx(100 * whole, abs=1e-3)


def test_long_texts_are_cut_and_empty_sources_are_read(model: Path) -> None:
    scored = entailed(model, ["the cat " * 100, "the cat"], "the dog " * 100)
    assert ((scored.rows > 0) & (scored.rows < 100)).all()
    assert 0 < entailed(model, ["the cat"], "").rows[0] < 100


@pytest.mark.parametrize(
    "labels", [["LABEL_0", "LABEL_1"], ["not_entailment", "neutral"], ["entailment", "Entailed"]], ids=str
)
def test_a_model_without_one_label_for_entailment_is_refused(tmp_path: Path, labels: list[str]) -> None:
    folder = save_model(tmp_path / "model", labels)
    with pytest.raises(UsageError, match=f"no single label for entailment \\(got {labels[0]}, {labels[1]}\\)"):
        require(["nli"], settings(folder))


def test_two_labels_are_enough(tmp_path: Path) -> None:
    require(["nli"], settings(save_model(tmp_path / "model", ["entailment", "not_entailment"])))


@pytest.mark.parametrize("content", [None, {}, {"model_type": "t5"}], ids=str)
def test_a_model_that_cannot_be_loaded_is_refused(tmp_path: Path, content: dict[str, str] | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"evaluate\.nli_model"):
        require(["nli"], settings(tmp_path))


def test_a_model_without_a_trained_classifier_is_refused(tmp_path: Path) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(save_model(tmp_path))
    classifier.bert.save_pretrained(tmp_path)  # an encoder whose config names the labels
    with pytest.raises(UsageError, match=r"has no weights for classifier\.bias, classifier\.weight"):
        measure(["nli"], ANSWERS[:1], [["-"]], settings(tmp_path), [SOURCE])


def test_a_model_must_be_named() -> None:
    with pytest.raises(ValueError, match="nli requires nli_model"):
        Evaluate(metrics=["nli"])

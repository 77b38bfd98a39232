"""Entailment of an answer by its source, by a natural language inference model that the task names.

This is the zero-shot score of SummaC (Laban et al. 2022, doi:10.1162/tacl_a_00453). Each sentence of the answer has the
largest probability of entailment over the sentences of the source, or over windows of consecutive sentences. The score
of an answer is the mean over its sentences. The sentences below 0.5 are written with the predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lora_ft.core.errors import UsageError, first_line
from lora_ft.data.sentences import SPLITTER, split_sentences
from lora_ft.evaluation.metrics.statistics import Scored
from lora_ft.export.checkpoint.tensor_checks import listed
from lora_ft.models.bases import quiet_transformers
from lora_ft.tasks.metric_names import UNENTAILED

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate

_BATCH = 16  # pairs of a source window and an answer's sentence
_LIKELY = 0.5
_OFFSET = 2  # positions that RoBERTa reserves of those in its config


class _Pair(NamedTuple):
    """A source window and an answer's sentence, with the row and the place of the sentence in its answer."""

    row: int
    place: int
    window: str
    sentence: str


def measure(
    answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate, sources: Sequence[str]
) -> dict[str, Scored]:
    """Return the entailment of each answer. An empty answer scores 0.

    Raises:
        UsageError: The model cannot be loaded, or has no label for entailment.
    """
    label = _entailment_label(settings)
    sentences = [split_sentences(answer) for answer in answers]
    best = [np.zeros(len(row)) for row in sentences]
    pairs = list(_pairs(sentences, sources, settings.nli_window))
    for pair, probability in zip(pairs, _probabilities(pairs, settings, label), strict=True):
        best[pair.row][pair.place] = max(best[pair.row][pair.place], probability)
    rows = np.array([100 * row.mean() if len(row) else 0.0 for row in best])
    unentailed = [
        [sentence for sentence, probability in zip(texts, values, strict=True) if probability < _LIKELY]
        for texts, values in zip(sentences, best, strict=True)
    ]
    window = "sentences" if settings.nli_window == 1 else f"windows of {settings.nli_window} sentences"
    how = f"SummaC-ZS over source {window} by {settings.nli_model}; sentences by {SPLITTER}"
    return {"entailment": Scored.mean(rows, how, {UNENTAILED: unentailed})}


def require(settings: Evaluate) -> None:
    """Raise UsageError if the model's config cannot be read, or has no label for entailment."""
    _entailment_label(settings)


def _entailment_label(settings: Evaluate) -> int:
    """Return the index of the model's label for entailment, by the names in its config."""
    from transformers import AutoConfig

    if settings.nli_model is None:
        raise UsageError("nli needs evaluate.nli_model", "name the folder or Hub name of a classifier")
    try:
        labels = AutoConfig.from_pretrained(settings.nli_model).id2label
    except (OSError, ValueError) as error:
        raise _unusable(settings, first_line(error)) from error
    matching = [int(index) for index, name in labels.items() if str(name).lower().startswith("entail")]
    if len(matching) != 1:
        names = ", ".join(map(str, labels.values()))
        raise UsageError(
            f"evaluate.nli_model: {settings.nli_model} has no single label for entailment (got {names})",
            "use a model trained for NLI, and name its labels in id2label of its config.json",
        )
    return matching[0]


def _pairs(sentences: Sequence[Sequence[str]], sources: Sequence[str], size: int) -> Iterator[_Pair]:
    """Yield every pair of a source window and a sentence of the answer."""
    for row, (texts, source) in enumerate(zip(sentences, sources, strict=True)):
        premises = split_sentences(source) or [source]
        windows = [" ".join(premises[i : i + size]) for i in range(max(1, len(premises) - size + 1))]
        for place, sentence in enumerate(texts):
            yield from (_Pair(row, place, window, sentence) for window in windows)


def _probabilities(pairs: Sequence[_Pair], settings: Evaluate, label: int) -> np.ndarray:
    """Return the probability of entailment of each pair [pairs]. Long pairs are cut at the model's limit."""
    import torch

    model, tokenizer = _load(settings)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()
    positions = getattr(model.config, "max_position_embeddings", None) or 512
    limit = max(1, min(tokenizer.model_max_length, positions - _OFFSET))
    probabilities = np.zeros(len(pairs))
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].window) + len(pairs[i].sentence))
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        windows, sentences = [pairs[i].window for i in batch], [pairs[i].sentence for i in batch]
        inputs = tokenizer(
            windows, sentences, truncation="longest_first", max_length=limit, padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = model(**inputs.to(device)).logits
        probabilities[batch] = logits.float().softmax(-1)[:, label].cpu().numpy()
    return probabilities


def _load(settings: Evaluate) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    name = settings.nli_model
    try:
        with quiet_transformers():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name,
                use_safetensors=True,  # pickles are never loaded
                output_loading_info=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _unusable(settings, first_line(error)) from error
    if missing := sorted(info["missing_keys"]):  # transformers would draw them at random
        raise _unusable(settings, f"it has no weights for {listed(missing)}")
    return model, tokenizer


def _unusable(settings: Evaluate, problem: str) -> UsageError:
    return UsageError(
        f"evaluate.nli_model: cannot load {settings.nli_model} ({problem})",
        "name the folder of a sequence classification model",
    )

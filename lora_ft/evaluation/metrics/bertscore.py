"""BERTScore's F1 by the package bert-score, with an encoder named by the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_ft.core.errors import UsageError, first_line
from lora_ft.evaluation.metrics.statistics import Scored

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Return the F1 of each row with its best reference, from the encoder's last layer, without rescaling.

    An empty answer scores 0.

    Raises:
        UsageError: The package is not installed, or the encoder cannot be loaded.
    """
    require(settings)
    from bert_score import BERTScorer
    from transformers import AutoConfig

    model = settings.bertscore_model
    try:
        scorer = BERTScorer(model_type=model, num_layers=AutoConfig.from_pretrained(model).num_hidden_layers)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"evaluate.bertscore_model: cannot load {model} ({first_line(error)})", "name the folder of an encoder"
        ) from error
    rows = np.zeros(len(answers))
    # bert-score 0.3.13 fails on texts without words in transformers 5.
    filled = [i for i, text in enumerate(answers) if text.strip()]
    if filled:
        _, _, f1 = scorer.score([answers[i] for i in filled], [list(references[i]) for i in filled])
        rows[filled] = 100 * f1.double().numpy()
    return {"bertscore": Scored.mean(rows, f"bert-score, last layer of {model}")}


def require(settings: Evaluate) -> None:
    """Raise UsageError if the package is not installed, or if the task names no encoder."""
    if settings.bertscore_model is None:
        raise UsageError("bertscore needs evaluate.bertscore_model", "name the folder or Hub name of an encoder")
    try:
        import bert_score  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            f"bertscore needs the package {error.name}, which is not installed",
            "pip install bert-score, or remove bertscore from evaluate.metrics",
        ) from error

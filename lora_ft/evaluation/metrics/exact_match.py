"""Share of answers that equal a reference, ignoring surrounding whitespace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_ft.evaluation.metrics.statistics import Scored
from lora_ft.tasks.metric_names import EXACT_MATCH

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Return 100 for each answer that equals one of its references, else 0."""
    pairs = zip(answers, references, strict=True)
    rows = np.array([100.0 * (answer.strip() in {text.strip() for text in texts}) for answer, texts in pairs])
    return {EXACT_MATCH: Scored.mean(rows)}

"""chrF2 by sacrebleu, over all rows at once. It compares character n-grams, so it needs no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sacrebleu.metrics import CHRF

from lora_ft.evaluation.metrics.statistics import Scored
from lora_ft.evaluation.metrics.sums import by_sums

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Return corpus chrF2, equal to `sacrebleu.corpus_chrf`."""
    metric = CHRF()
    return {"chrf": by_sums(metric, metric, answers, references)}

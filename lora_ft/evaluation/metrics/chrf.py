"""chrF2 by sacrebleu, over all rows at once: n-grams of characters, so that no language needs a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sacrebleu.metrics import CHRF

from lora_ft.evaluation.metrics.statistics import Scored
from lora_ft.evaluation.metrics.sums import by_sums

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Evaluate


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Corpus chrF2 as `sacrebleu.corpus_chrf` gives it."""
    metric = CHRF()
    return {"chrf": by_sums(metric, metric, answers, references)}

"""BLEU by sacrebleu, over all rows at once. The score of a single row is its sentence BLEU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sacrebleu.metrics import BLEU

from lora_ft.evaluation.metrics.statistics import Scored
from lora_ft.evaluation.metrics.sums import by_sums

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate

# sacrebleu has a tokenizer for Chinese. Other languages without spaces are split into characters, since sacrebleu's
# tokenizer for Japanese needs a dictionary (MeCab).
_TOKENIZERS = {"zh": "zh"} | dict.fromkeys(("ja", "th", "lo", "km", "my"), "char")


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Return corpus BLEU, equal to `sacrebleu.corpus_bleu`."""
    tokenize = _TOKENIZERS.get(settings.language, BLEU.TOKENIZER_DEFAULT)
    whole, alone = (BLEU(tokenize=tokenize, force=True, effective_order=single_row) for single_row in (False, True))
    return {"bleu": by_sums(whole, alone, answers, references)}

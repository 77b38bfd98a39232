"""sacrebleu's metrics of all rows, out of sums that each row adds to: what its own bootstrap draws rows by."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from sacrebleu.metrics.base import Metric

from lora_ft.evaluation.metrics.statistics import Scored


def by_sums(metric: Metric, alone: Metric, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Scored:
    """What a metric found.

    Args:
        metric: of all rows.
        alone: the same, as it is asked for a single row.
        answers: [rows].
        references: of each row; rows may have different numbers of them.
    """
    streams = list(zip_longest(*references))  # None where a row has fewer, as sacrebleu wants it
    parts = np.array(metric._extract_corpus_statistics(list(answers), streams), dtype=np.float64)

    def whole(sums: np.ndarray, metric: Metric = metric) -> float:
        return float(metric._compute_score_from_stats(sums.tolist()).score)

    rows = np.array([whole(row, alone) for row in parts])
    return Scored(rows, parts, whole, f"sacrebleu {metric.get_signature()}")

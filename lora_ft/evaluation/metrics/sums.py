"""Corpus-level sacrebleu metrics from per-row sufficient statistics, so that rows can be resampled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from sacrebleu.metrics.base import Metric

from lora_ft.evaluation.metrics.statistics import Scored


def by_sums(metric: Metric, alone: Metric, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Scored:
    """Return the scores of a sacrebleu metric.

    Args:
        metric: Metric for all rows.
        alone: The same metric, configured for a single row.
        answers: [rows] answers.
        references: [rows] acceptable texts. Rows may have different numbers of them.
    """
    streams = list(zip_longest(*references))  # sacrebleu skips None, the filler of rows with fewer references
    statistics = np.array(metric._extract_corpus_statistics(list(answers), streams), dtype=np.float64)

    def whole(sums: np.ndarray, metric: Metric = metric) -> float:
        return float(metric._compute_score_from_stats(sums.tolist()).score)

    rows = np.array([whole(row, alone) for row in statistics])
    return Scored(rows, statistics, whole, f"sacrebleu {metric.get_signature()}")

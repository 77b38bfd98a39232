"""The winner: the smallest adapter that is not significantly worse, tested on rows with all seeds of each finalist."""

from __future__ import annotations

import numpy as np
import pytest

from lora_ft.evaluation.metrics import Scored
from lora_ft.evaluation.metrics.statistics import compare
from lora_ft.runs.search_record import Finalist
from lora_ft.searching.final_comparison import mean_of, select


def finalist(number: int, parameters: int, score: float, p: float | None) -> Finalist:
    return Finalist(number, [f"run-{number}"], parameters, score, None if p is None else (-1.0, -2.0, 0.0), p)


@pytest.mark.parametrize(
    ("second", "winner"),
    [((100, 0.5), 1), ((100, 0.05), 1), ((100, 0.049), 0), ((200, 0.5), 0), ((300, 0.5), 0)],
)
def test_the_smallest_that_is_not_significantly_worse_wins(second: tuple[int, float], winner: int) -> None:
    best = finalist(0, 200, 50.0, None)
    assert select([best, finalist(1, second[0], 49.0, second[1])]).trial == winner


def test_the_mean_of_seeds_is_tested_by_row() -> None:
    rng = np.random.default_rng(0)
    rows = rng.uniform(0, 100, size=(4, 50))
    first, second = mean_of([Scored.mean(row) for row in rows[:2]]), mean_of([Scored.mean(row) for row in rows[2:]])
    assert first.value == pytest.approx(rows[:2].mean()) and np.allclose(first.rows, rows[:2].mean(axis=0))
    plain = compare(Scored.mean(rows[:2].mean(axis=0)), Scored.mean(rows[2:].mean(axis=0)), seed=3, resamples=500)
    paired = compare(first, second, seed=3, resamples=500)
    assert paired.p == plain.p and paired.estimate.low == pytest.approx(plain.estimate.low)

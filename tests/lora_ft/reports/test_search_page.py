"""The page of a search: complete, escaped, self-contained, and correct in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.reports.search_page import pareto_front, render
from lora_ft.runs.search_record import Finalist, Round, SearchRecord
from tests.lora_ft.reports.browser import (
    WIDTHS,
    measure,
    require_drawn,
    require_nothing_loaded,
    require_self_contained,
    require_uncut,
)
from tests.lora_ft.searching.records import make_record, make_trial

NASTY = '<script>alert(1)</script> & "quotes" ' + "long" * 60


@pytest.fixture
def record() -> SearchRecord:
    """Return the record of a finished search with every outcome."""
    trials = [make_trial(n, 30.0 + n % 7, reason=f"rank {n} of 20 after 10 of 90 steps") for n in range(16)]
    trials += [make_trial(n, 35.0, 38.0 + n, 40.0 + n % 4, state="finished") for n in range(16, 20)]
    trials += [make_trial(20, state="failed", reason=NASTY)]
    trials += [make_trial(21, 43.0, state="finished", step=90, repeats=19)]
    record = make_record(*trials)
    record.rounds = [Round(list(range(8)), 80, 1.5), Round([8, 9], 20, 0.5)]
    record.finalists = [
        Finalist(19, ["demo-019", "demo-021"], 200, 43.0),
        Finalist(18, ["demo-018"], 100, 42.0, (-1.0, -2.0, 0.5), 0.25),
    ]
    record.winner = "demo-018"
    return record


def test_page_shows_every_trial_and_why_it_ended(record: SearchRecord) -> None:
    page = render(record, {"lora.r": 0.75, "train.learning_rate": 0.25})
    require_self_contained(page, levels={2, 3})
    for trial in record.trials:
        assert f">{trial.name}</th>" in page
    assert "rank 3 of 20 after 10 of 90 steps" in page and "<script" not in page and "&lt;script&gt;" in page
    assert "winner demo-018" in page and "-1.0 [-2.0, +0.5]" in page and "0.250" in page and "75%" in page
    assert page.count("<svg") == 2 and "22 runs tried" in page and "16 were stopped" in page
    for outcome in ("winner", "finished", "stopped"):
        assert f"<title>{outcome}</title>" in page


def test_page_of_an_unfinished_search_needs_no_scores() -> None:
    page = render(make_record(make_trial(0, state="running")), {})
    require_self_contained(page, levels={2, 3})
    assert "unfinished" in page and "<svg" not in page and "Importance" not in page


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=12), st.sampled_from([1, -1]))
def test_no_trial_beats_one_of_the_front_and_the_front_beats_all_others(
    points: list[tuple[int, int]], sign: int
) -> None:
    trials = [make_trial(n, 0.0, 0.0, float(score), parameters=size) for n, (score, size) in enumerate(points)]
    front = pareto_front(trials, sign)

    def beats(a: tuple[float, int], b: tuple[float, int]) -> bool:
        return a[0] >= b[0] and a[1] <= b[1]

    values = [(sign * trial.scores[-1], trial.parameters) for trial in front]
    assert all(not beats(a, b) for a in values for b in values if a is not b)
    assert all(any(beats(a, (sign * trial.scores[-1], trial.parameters)) for a in values) for trial in trials)


def test_browser_shows_everything_uncut(record: SearchRecord, tmp_path: Path) -> None:
    page = render(record, {"lora.r": 0.75, "train.learning_rate": 0.25})
    measured = measure(tmp_path, {"search": page})
    require_nothing_loaded(measured)
    for width in WIDTHS:
        require_uncut(measured[f"search {width}"], width)
        assert measured[f"search {width}"]["charts"] == 2


def test_browser_draws_the_page(record: SearchRecord, tmp_path: Path) -> None:
    require_drawn(tmp_path, render(record, {"lora.r": 1.0}))

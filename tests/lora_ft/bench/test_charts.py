"""Which figures are drawn, and the front of those that nobody beats."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_ft.bench.charts import charts, pareto
from lora_ft.bench.tables import DETAILS, QUALITY, SERVING, SUMMARY
from tests.lora_ft.bench.reports import AWKWARD, broken, complete


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_nobody_beats_the_front_and_the_front_beats_the_rest(points: list[tuple[float, float]]) -> None:
    front = pareto(points)
    assert front == sorted(front)
    for x, y in points:
        beaten = any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
        assert beaten != ((x, y) in front)


def test_a_complete_report_has_all_charts() -> None:
    report = complete(sources=(32, 128))
    found = charts(report)
    assert [plot.y.label for plot in found[SUMMARY]] == ["total, ms"] * 2 + ["measured, ms/token"] * 2
    assert [series.name for series in found[SUMMARY][0].series] == list(AWKWARD)
    assert [plot.title for plot in found[SERVING]] == [
        "Latency under load, p50",
        "Latency under load, p90",
        "Goodput under load",
    ]
    assert len(found[DETAILS]) == len(report.cases)
    assert [series.name for series in found[QUALITY][0].series] == ["Pareto front", *AWKWARD]


def test_threads_have_charts_of_their_own() -> None:
    report = complete()
    first, *others = report.contestants
    mixed = report.model_copy(update={"contestants": [first.model_copy(update={"threads": 1}), *others]})
    titles = [plot.title for plot in charts(mixed)[SUMMARY] if plot.title.startswith("Latency")]
    assert [title.rpartition(", ")[2] for title in titles] == ["1 thread", "2 threads"]


def test_one_batch_is_no_line_and_what_failed_is_on_no_front() -> None:
    found = charts(broken())
    assert list(found) == [SUMMARY, DETAILS]
    assert not any(plot.title.startswith("Latency") for plot in found[SUMMARY])
    report = complete()
    wrong = [one.model_copy(update={"error": "wrong"}) for one in report.contestants[1:]]
    alone = report.model_copy(update={"contestants": [report.contestants[0], *wrong]})
    assert [series.name for series in charts(alone)[QUALITY][0].series] == list(AWKWARD)


def test_rings_are_at_knees_and_points_on_the_floor_lie_where_it_says() -> None:
    report = complete()
    for plot in charts(report)[SERVING]:
        rings = {entry.name: [point.x for point in entry.points if point.ring] for entry in plot.series}
        assert rings == {name: [service.knee] for name, service in report.serving.items()}
    (plot,) = (plot for plot in charts(report)[SUMMARY] if "floor" in plot.title)
    point = plot.series[0].points[0]
    timing = report.cases[0].timings[AWKWARD[0]]
    assert timing.floor is not None and abs(point.x / point.y - timing.floor) < 1e-9


def test_percentiles_are_marked_on_the_distribution_where_there_are_enough_samples() -> None:
    def marked(rounds: int) -> list[float]:
        entry = charts(complete(batches=(1,), rounds=rounds))[DETAILS][0].series[0]
        assert all(a.y <= b.y and a.x <= b.x for a, b in zip(entry.points, entry.points[1:], strict=False))
        return [point.y for point in entry.points if not point.bare]

    assert marked(5) == []
    assert marked(11) == [50.0]
    assert marked(70) == [50.0, 90.0]

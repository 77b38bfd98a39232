"""Charts of a report, and the Pareto front."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_ft.bench.charts import charts, pareto
from lora_ft.bench.tables import DETAILS, QUALITY, SERVING, SUMMARY
from tests.lora_ft.bench.reports import AWKWARD, broken, complete


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_pareto_front_is_exactly_the_undominated_points(points: list[tuple[float, float]]) -> None:
    front = pareto(points)
    assert front == sorted(front)
    for x, y in points:
        beaten = any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
        assert beaten != ((x, y) in front)


def test_complete_report_has_all_charts() -> None:
    report = complete(sources=(32, 128))
    plots = charts(report)
    assert [plot.y.label for plot in plots[SUMMARY]] == ["total, ms"] * 2 + ["measured, ms/token"] * 2
    assert [series.name for series in plots[SUMMARY][0].series] == list(AWKWARD)
    assert [plot.title for plot in plots[SERVING]] == [
        "Latency under load, p50",
        "Latency under load, p90",
        "Goodput under load",
    ]
    assert len(plots[DETAILS]) == len(report.cases)
    assert [series.name for series in plots[QUALITY][0].series] == ["Pareto front", *AWKWARD]


def test_each_number_of_threads_has_its_own_chart() -> None:
    report = complete()
    first, *remaining = report.contestants
    mixed = report.model_copy(update={"contestants": [first.model_copy(update={"threads": 1}), *remaining]})
    titles = [plot.title for plot in charts(mixed)[SUMMARY] if plot.title.startswith("Latency")]
    assert [title.rpartition(", ")[2] for title in titles] == ["1 thread", "2 threads"]


def test_single_batch_has_no_latency_chart_and_failed_engines_are_not_on_the_front() -> None:
    plots = charts(broken())
    assert list(plots) == [SUMMARY, DETAILS]
    assert not any(plot.title.startswith("Latency") for plot in plots[SUMMARY])
    report = complete()
    wrong = [engine.model_copy(update={"error": "wrong"}) for engine in report.contestants[1:]]
    alone = report.model_copy(update={"contestants": [report.contestants[0], *wrong]})
    assert [series.name for series in charts(alone)[QUALITY][0].series] == list(AWKWARD)


def test_rings_mark_knees_and_roofline_points_match_the_share() -> None:
    report = complete()
    for plot in charts(report)[SERVING]:
        rings = {entry.name: [point.x for point in entry.points if point.ring] for entry in plot.series}
        assert rings == {name: [service.knee] for name, service in report.serving.items()}
    (plot,) = (plot for plot in charts(report)[SUMMARY] if "roofline" in plot.title)
    point = plot.series[0].points[0]
    timing = report.cases[0].timings[AWKWARD[0]]
    assert timing.floor is not None and abs(point.x / point.y - timing.floor) < 1e-9


def test_percentiles_with_enough_samples_are_marked_on_the_distribution() -> None:
    def marked(rounds: int) -> list[float]:
        entry = charts(complete(batches=(1,), rounds=rounds))[DETAILS][0].series[0]
        assert all(a.y <= b.y and a.x <= b.x for a, b in zip(entry.points, entry.points[1:], strict=False))
        return [point.y for point in entry.points if not point.bare]

    assert marked(5) == []
    assert marked(11) == [50.0]
    assert marked(70) == [50.0, 90.0]

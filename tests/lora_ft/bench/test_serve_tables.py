"""The tables of a report on servers: which cells are shown, and which load is the knee."""

from __future__ import annotations

from lora_ft.bench import serve_tables
from lora_ft.bench.report import Percentiles
from lora_ft.bench.serve_pages import charts, render_html, render_markdown
from lora_ft.bench.serve_report import Load, LoadPlan, ServeReport, ServerReport, Usage
from lora_ft.bench.statistics import percentiles


def load(offered: float, seconds: float, **changes: object) -> Load:
    """Return a load of 64 requests that all took the same time."""
    times = [seconds] * 64
    values: dict[str, object] = {
        "profile": "poisson",
        "offered": offered,
        "answered": offered,
        "seconds": times,
        "ratios": times,
        "first": times,
        "per_token": times,
        "percentiles": percentiles(times),
        "ratio": percentiles(times),
        "first_token": percentiles(times),
        "token": percentiles(times[:5]),
        "within": 1.0,
        "goodput": offered,
        "same": 1.0,
        "tokens": 9.0,
        "failed": {},
        "usage": [Usage(seconds=0.5, cpu=1.0, megabytes=100.0)],
        "cpu": 1.25,
        "megabytes": 100.0,
        "client": 0.01,
        "late": 0.0,
        "engine": {},
        **changes,
    }
    return Load.model_validate(values)


def server(name: str, loads: list[Load], knee: float | None, error: str = "") -> ServerReport:
    """Return a server with its knee."""
    alone = Percentiles(samples=48, p50=0.1, p90=None, p99=None) if loads else None
    return ServerReport(
        name=name,
        kind="command",
        source="serve | {port}",
        models=["a", "b"],
        alone=[0.1] * 48 if loads else [],
        percentiles=alone,
        limits_from=name,
        tokens=9.0,
        loads=loads,
        knee=knee,
        goodput=knee or 0.0,
        error=error,
    )


REPORT = ServeReport(
    plan=LoadPlan(),
    data="rows.jsonl",
    environment={"cpu": "x"},
    began="2026-01-02T03:04:05+00:00",
    seconds=61.0,
    interrupted=True,
    servers=[
        server("ours", [load(4.0, 0.2), load(8.0, 0.4, failed={429: 2, 0: 1}, cpu=None)], 4.0),
        server("theirs", [load(1.0, 0.2)], 1.0),
        server("slow", [load(1.0, 9.0)], None),
        server("broken", [], None, "out of memory"),
    ],
    warnings=["the host withheld 9% of a core (CPU steal)"],
)


def test_the_summary_has_every_server_at_its_knee() -> None:
    table = serve_tables.knees(REPORT)
    cells = [[cell.text for cell in row] for row in table.rows]
    ratio = table.columns.index("of the first")
    assert [row[0] for row in cells] == ["ours", "theirs", "slow", "broken (failed)"]
    assert [row[ratio] for row in cells] == ["1.00", "0.25", "–", "–"]
    assert [row[table.columns.index("end, p50, ms")] for row in cells] == ["200", "200", "–", "–"]
    assert table.rows[0][table.columns.index("ms/token, p50")].hint == "5 samples of the 11 required"


def test_servers_are_compared_at_the_reference_load() -> None:
    """A server that was not measured at it has no row. With one server there is nothing to compare."""
    slow = load(4.0, 0.6, reference=True, failed={0: 3}, timeouts=2)
    servers = [
        server("ours", [load(4.0, 0.2, reference=True)], 4.0),
        server("theirs", [load(1.0, 0.2), slow], 1.0),
        REPORT.servers[3],
    ]
    (table,) = serve_tables.equal_load(REPORT.model_copy(update={"servers": servers}))
    assert table.title == "Servers at the reference load, 4.00 requests/s"
    ratio, failed = (table.columns.index(name) for name in ("times the first", "failed"))
    assert [(row[0].text, row[ratio].text) for row in table.rows] == [("ours", "1.00"), ("theirs", "3.00")]
    assert table.rows[1][failed] == ("3", "3 with status none, 2 by a timeout", False)
    assert serve_tables.equal_load(REPORT.model_copy(update={"servers": servers[:1]})) == []


def test_the_report_names_the_server_whose_limits_count() -> None:
    assert "row alone on the same server." in serve_tables.knees(REPORT).note
    servers = [entry.model_copy(update={"limits_from": "ours"}) for entry in REPORT.servers]
    common = REPORT.model_copy(update={"servers": servers, "plan": LoadPlan(common_slo=True)})
    assert "row alone on ours." in serve_tables.knees(common).note
    assert "SLO: 3 times the row alone on ours" in serve_tables.facts(common)


def test_tables_fit_the_terminal() -> None:
    servers = [server("lora-ft serve", [load(4.0, 0.2, reference=True)], 4.0)] * 2
    for table in (serve_tables.knees(REPORT), *serve_tables.equal_load(REPORT.model_copy(update={"servers": servers}))):
        brief = table.brief()
        columns = enumerate(brief.columns)
        widths = [max(len(heading), *(len(row[i].text) for row in brief.rows)) for i, heading in columns]
        assert sum(widths) + 2 * len(widths) <= 80


def test_the_loads_of_a_server_mark_the_knee_and_explain_failures() -> None:
    (ours, *_) = serve_tables.sections(REPORT)[serve_tables.LOADS]
    assert [row[0].best for row in ours.rows] == [True, False]
    failed = ours.rows[1][ours.columns.index("failed")]
    assert (failed.text, failed.hint) == ("3", "2 with status 429, 1 with status none")


def test_pages_have_all_servers_warnings_and_the_interruption() -> None:
    for page in (render_html(REPORT), render_markdown(REPORT)):
        for text in ("ours", "theirs", "broken", "interrupted", "CPU steal", "rows.jsonl"):
            assert text in page
    assert "serve \\| {port}" in render_markdown(REPORT)


def test_charts_leave_out_figures_without_points() -> None:
    assert [plot.title for plot in charts(REPORT)] == [
        "Goodput",
        "Time to the end over the time alone, p90",
        "Time to the first text, p50",
        "Memory at the knee",
    ]
    empty = REPORT.model_copy(update={"servers": REPORT.servers[3:]})
    assert charts(empty) == []

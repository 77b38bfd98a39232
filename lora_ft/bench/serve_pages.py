"""A report on servers as a self-contained HTML page without scripts, and as GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Callable

from lora_ft.bench.formatting import number
from lora_ft.bench.serve_report import Load, ServeReport, ServerReport
from lora_ft.bench.serve_tables import LOADS, facts, method, sections, warnings
from lora_ft.reports import markdown
from lora_ft.reports.html import aside, document, escape, section, table
from lora_ft.reports.svg import STYLE, Axis, Plot, Point, Rule, Series, figures

TITLE = "Servers under load"


def render_html(report: ServeReport) -> str:
    """Return the page."""
    plots = {LOADS: charts(report)}
    body = [
        section(heading, [*map(table, tables), *figures(plots.get(heading, []))])
        for heading, tables in sections(report).items()
    ]
    body.append(section("How it was measured", [f"<p>{escape(text)}</p>" for text in method(report)]))
    header = [f"<h1>{TITLE}</h1>", f'<p class="facts">{escape(" · ".join(facts(report)))}</p>']
    return document(TITLE, [*header, *aside(warnings(report))], body, STYLE)


def render_markdown(report: ServeReport) -> str:
    """Return the Markdown, which ends with a newline."""
    blocks = [f"# {TITLE}", markdown.escaped(" · ".join(facts(report)))]
    if notes := warnings(report):
        blocks.append("\n".join(f"- **{markdown.escaped(warning)}**" for warning in notes))
    for heading, tables in sections(report).items():
        blocks += [f"## {heading}", *map(markdown.render_table, tables)]
    blocks += ["## How it was measured", *map(markdown.escaped, method(report))]
    return "\n\n".join(blocks) + "\n"


def charts(report: ServeReport) -> list[Plot]:
    """Return goodput and times against the offered load, and memory over time."""
    x = Axis("offered, requests/s", log=True)
    ring = "A ring marks the knee. Arrivals are a Poisson process."
    good = Axis("good answers, 1/s", log=True)
    plots = [
        Plot("Goodput", x, good, _loads(report, lambda load: load.goodput or None, 1, "/s"), (), ring),
        Plot(
            "Time to the end over the time alone, p90",
            x,
            Axis("times the row alone", log=True),
            _loads(report, lambda load: load.ratio.p90, 1, "times"),
            [Rule(f"SLO {report.plan.slo:g}", report.plan.slo)],
            ring,
        ),
        Plot(
            "Time to the first text, p50",
            x,
            Axis("ms", log=True),
            _loads(report, lambda load: load.first_token.p50, 1000, "ms"),
            (),
            ring,
        ),
        Plot("Memory at the knee", Axis("seconds"), Axis("resident, MB", include=(0.0,)), _memory(report)),
    ]
    return [plot for plot in plots if any(series.points for series in plot.series)]


def _loads(report: ServeReport, figure: Callable[[Load], float | None], times: float, unit: str) -> list[Series]:
    return [Series(server.name, _points(server, figure, times, unit), at) for at, server in enumerate(report.servers)]


def _points(server: ServerReport, figure: Callable[[Load], float | None], times: float, unit: str) -> list[Point]:
    return [
        Point(
            load.offered,
            times * value,
            hint=f"{server.name} at {number(load.offered)} requests/s: {number(times * value)} {unit}",
            ring=load.offered == server.knee,
        )
        for load in server.loads
        if load.profile == "poisson" and (value := figure(load)) is not None
    ]


def _memory(report: ServeReport) -> list[Series]:
    series = []
    for at, server in enumerate(report.servers):
        load = server.at_knee()
        points = [
            Point(usage.seconds, usage.megabytes, hint=f"{server.name}: {number(usage.megabytes)} MB", bare=True)
            for usage in (load.usage if load else ())
        ]
        series.append(Series(server.name, points, at))
    return series

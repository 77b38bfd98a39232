"""The tables of a report on servers, from which the terminal, the Markdown and the HTML page are rendered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_ft.bench.formatting import duration, number, percent
from lora_ft.bench.report import Percentiles
from lora_ft.bench.serve_report import Load, ServeReport, ServerReport
from lora_ft.bench.statistics import needed
from lora_ft.bench.tables import SHARES, percentile_cell
from lora_ft.reports.table import NONE, Cell, Column, Table

_ATTEMPTS = {1: "once", 2: "twice"}
SUMMARY, REFERENCE, LOADS, ALONE, ENVIRONMENT = "At the knee", "At equal load", "Under load", "Alone", "Environment"
_KINDS = {"url": "address", "command": "command", "engine": "bundle without HTTP"}


def sections(report: ServeReport) -> dict[str, list[Table]]:
    """Return all tables by their heading; headings without tables are left out."""
    tables = {
        SUMMARY: [knees(report)],
        REFERENCE: equal_load(report),
        LOADS: [loads(report, server) for server in report.servers if server.loads],
        ALONE: [alone(report)],
        ENVIRONMENT: [_environment(report)],
    }
    return {heading: group for heading, group in tables.items() if group}


def facts(report: ServeReport) -> list[str]:
    """Return when the report was measured, for how long and on what rows."""
    plan = report.plan
    return [
        f"{report.began[:16].replace('T', ' ')} UTC",
        f"took {duration(report.seconds)}",
        *([report.data] if report.data else []),
        f"{plan.rows} rows",
        f"SLO: {plan.slo:g} times the row alone on {_limits_from(report)}",
    ]


def warnings(report: ServeReport) -> list[str]:
    """Return the warnings that apply to all figures of the report."""
    interrupted = ["The benchmark was interrupted; figures measured until then are shown."]
    return interrupted * report.interrupted + report.warnings


def method(report: ServeReport) -> list[str]:
    """Return how the servers were measured, in paragraphs."""
    plan = report.plan
    required = ", ".join(f"{needed(share)} for {name}" for name, share in SHARES.items())
    return [
        "Every row is first answered alone on the idle server, four times; the median counts. Under load, requests are "
        f"drawn from these rows. A request is good if it ends within {plan.slo:g} times the time of its row alone on "
        f"{_limits_from(report)}, counted from its arrival.",
        "Requests arrive whether or not earlier ones are answered (open loop), as a Poisson process or in bursts "
        "(gamma-distributed gaps with twice the standard deviation). Loads grow until fewer than 90 % of the requests "
        "are good; a load that fails is offered "
        + _ATTEMPTS.get(plan.attempts, f"{plan.attempts} times")
        + ". It ends "
        "early once it cannot be held any more. The knee is the largest load below, refined by bisection.",
        "The reference load is the knee of the first server. Every server is measured at it, even beyond its own knee.",
        f"A percentile is shown only with the number of samples that MLPerf's rules require: {required}.",
        "The load generator is a process of its own on the same machine; its CPU time is shown with each load.",
    ]


@dataclass(frozen=True)
class _Knee:
    """A server and its load at the knee."""

    server: ServerReport
    load: Load | None
    first: ServerReport

    @property
    def times(self) -> str:
        if not self.first.goodput or not self.server.goodput:
            return NONE
        return f"{self.server.goodput / self.first.goodput:.2f}"


def knees(report: ServeReport) -> Table:
    """Return the table of goodput and times at each server's knee."""
    columns: list[Column[_Knee]] = [
        Column("server", lambda row: _label(row.server), "server"),
        Column("alone, p50, ms", lambda row: _percentile(row.server.percentiles, "p50"), "alone"),
        Column("knee, requests/s", lambda row: number(row.server.knee), "knee/s"),
        Column("goodput, 1/s", lambda row: number(row.server.goodput) if row.load else NONE, "good/s"),
        Column("of the first", lambda row: row.times, "ratio"),
        Column("p90 over alone", lambda row: _ratio(row.load), None),
        Column("end, p50, ms", lambda row: _cell(row.load, "percentiles", "p50"), "p50"),
        Column("end, p90, ms", lambda row: _cell(row.load, "percentiles", "p90"), "p90"),
        Column("first text, p50, ms", lambda row: _cell(row.load, "first_token", "p50"), "first"),
        Column("first text, p90, ms", lambda row: _cell(row.load, "first_token", "p90"), None),
        Column("ms/token, p50", lambda row: _cell(row.load, "token", "p50"), "/token"),
        Column("ms/token, p90", lambda row: _cell(row.load, "token", "p90"), None),
        Column("tokens", lambda row: number(row.server.tokens), None),
        Column("cores", lambda row: number(row.load.cpu, 2) if row.load else NONE),
        Column("MB", lambda row: number(row.load.megabytes) if row.load else NONE),
    ]
    rows = [_Knee(server, server.at_knee(), report.servers[0]) for server in report.servers]
    note = (
        f"Knee: the largest load at which 90 % of the requests end within {report.plan.slo:g} times the time of their "
        f"row alone on {_limits_from(report)}. Other figures are measured at the knee. Times count from the arrival."
    )
    return Table.of("Servers at their knee", columns, rows, note=note)


def equal_load(report: ServeReport) -> list[Table]:
    """Return the table of all servers at the reference load, or no table if only one was measured at it."""
    pairs = [(server, load) for server in report.servers if (load := server.at_reference()) is not None]
    if len(pairs) < 2:
        return []
    first = pairs[0][1].first_token.p50

    def times(load: Load) -> str:
        p50 = load.first_token.p50
        return NONE if p50 is None or not first else f"{p50 / first:.2f}"

    columns: list[Column[tuple[ServerReport, Load]]] = [
        Column("server", lambda row: _label(row[0]), "server"),
        Column("within, %", lambda row: percent(row[1].within), "within"),
        Column("first text, p50, ms", lambda row: _cell(row[1], "first_token", "p50"), "first"),
        Column("times the first", lambda row: times(row[1]), "ratio"),
        Column("first text, p90, ms", lambda row: _cell(row[1], "first_token", "p90"), None),
        Column("end, p50, ms", lambda row: _cell(row[1], "percentiles", "p50"), "p50"),
        Column("end, p90, ms", lambda row: _cell(row[1], "percentiles", "p90"), "p90"),
        Column("failed", lambda row: _failed(row[1]), "failed"),
    ]
    title = f"Servers at the reference load, {number(pairs[0][1].offered)} requests/s"
    note = "The largest load that the first server holds. It may be beyond the knee of the others."
    return [Table.of(title, columns, pairs, note=note)]


def loads(report: ServeReport, server: ServerReport) -> Table:
    """Return the table of one server's loads."""
    columns: list[Column[Load]] = [
        Column("offered, 1/s", lambda load: Cell(number(load.offered), best=load.offered == server.knee)),
        Column("arrivals", lambda load: f"{load.profile}, reference load" if load.reference else load.profile),
        Column("requests", _requests),
        Column("within, %", lambda load: percent(load.within)),
        Column("goodput, 1/s", lambda load: number(load.goodput)),
        Column("p90 over alone", _ratio),
        *_columns("end", "percentiles", ("p50", "p90", "p99")),
        *_columns("first text", "first_token", ("p50", "p90")),
        *_columns("per token", "token", ("p50", "p90")),
        Column("same texts, %", lambda load: percent(load.same)),
        Column("failed", _failed),
        Column("cores", lambda load: number(load.cpu, 2)),
        Column("MB", lambda load: number(load.megabytes)),
        Column("client's cores", lambda load: number(load.client, 2)),
    ]
    return Table.of(server.name, columns, server.loads, note="Times in ms. Bold is the knee.").filled()


def alone(report: ServeReport) -> Table:
    """Return the table of the rows alone, and of what was measured."""
    columns: list[Column[ServerReport]] = [
        Column("server", _label),
        Column("kind", lambda server: _KINDS[server.kind]),
        Column("source", lambda server: server.source),
        Column("models", lambda server: str(len(server.models))),
        Column("p50, ms", lambda server: _percentile(server.percentiles, "p50")),
        Column("p90, ms", lambda server: _percentile(server.percentiles, "p90")),
        Column("tokens", lambda server: number(server.tokens)),
    ]
    return Table.of("Rows alone on the idle server", columns, report.servers, words=3)


def _columns(heading: str, field: str, names: Sequence[str]) -> list[Column[Load]]:
    def cell(name: str) -> Callable[[Load], Cell]:
        return lambda load: _cell(load, field, name)

    return [Column(f"{heading}, {name}", cell(name)) for name in names]


def _cell(load: Load | None, field: str, name: str) -> Cell:
    return percentile_cell(getattr(load, field), name) if load is not None else Cell(NONE)


def _percentile(percentiles: Percentiles | None, name: str) -> Cell:
    return percentile_cell(percentiles, name) if percentiles else Cell(NONE)


def _ratio(load: Load | None) -> str:
    return NONE if load is None or load.ratio.p90 is None else f"{load.ratio.p90:.2f}"


def _label(server: ServerReport) -> Cell:
    return Cell(f"{server.name} (failed)", server.error) if server.error else Cell(server.name)


def _requests(load: Load) -> Cell:
    count = str(len(load.seconds))
    return Cell(f"{count}, stopped", "too many had missed their limit") if load.stopped else Cell(count)


def _failed(load: Load) -> Cell:
    if not load.failed:
        return Cell(NONE)
    statuses = [f"{count} with status {status or 'none'}" for status, count in load.failed.items()]
    timeouts = [f"{load.timeouts} by a timeout"] * (load.timeouts > 0)
    return Cell(str(sum(load.failed.values())), ", ".join(statuses + timeouts))


def _limits_from(report: ServeReport) -> str:
    """Return the server whose times alone set the limits."""
    return report.servers[-1].limits_from if report.plan.common_slo and report.servers else "the same server"


def _environment(report: ServeReport) -> Table:
    columns: list[Column[tuple[str, str]]] = [
        Column("fact", lambda fact: fact[0]),
        Column("value", lambda fact: fact[1]),
    ]
    environment = {**report.environment, "seed": str(report.plan.seed)}
    return Table.of("Machine and versions", columns, list(environment.items()), words=2)

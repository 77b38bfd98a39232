"""Tables of benchmark reports on stdout, 80 columns wide where stdout is not a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from lora_ft.reports.terminal import console, table

if TYPE_CHECKING:
    from lora_ft.bench.regressions import Change
    from lora_ft.bench.report import BenchReport, Case, Service


def show_report(report: BenchReport, page: Path) -> None:
    """Print the main figures of a report; the page has the others."""
    screen = console()
    for case in report.cases:
        screen.print(_case_table(report, case))
        screen.print()
    if report.quality:
        screen.print(_quality_table(report))
        screen.print()
    for name, service in report.serving.items():
        screen.print(_serving_table(name, service))
        assert report.suite.serving is not None
        knee = f"{service.knee:.2f} requests/s" if service.knee else "none of these loads"
        screen.print(f"within {report.suite.serving.slo:g} s for nine of ten: {knee}\n")
    screen.print(
        f"{report.verdict}{', interrupted' if report.interrupted else ''}; {report.suite.rounds} rounds; "
        f"harness {report.harness.share:.2%}; memory read at {report.bandwidth / 1e9:.1f} GB/s",
    )
    for warning in report.warnings:
        screen.print(f"warning: {warning}", soft_wrap=True)
    screen.print(f"page: {page}", soft_wrap=True)


def _quality_table(report: BenchReport) -> Table:
    """Return the scores of all engines on real rows, and their differences from the reference."""
    metric = next(iter(report.quality.values())).metric
    rows = table("", metric, "against the reference", "same", "s/row", title="real rows, natural length")
    for name, quality in report.quality.items():
        change = quality.difference
        rows.add_row(
            name,
            f"{quality.score.value:.1f}",
            f"{change.value:+.1f} [{change.low:+.1f}, {change.high:+.1f}]" if change else "reference",
            f"{quality.identical:.0%}",
            f"{quality.seconds / quality.rows:.3f}",
        )
    return rows


def _serving_table(name: str, service: Service) -> Table:
    """Return the latencies of one engine under each offered load."""
    rows = table("requests/s", "answered", "good", "p50 ms", "p90 ms", "batch", title=name)
    for load in service.loads:
        rows.add_row(
            f"{load.offered:.2f}",
            f"{load.answered:.2f}",
            f"{load.goodput:.2f}",
            _milliseconds(load.percentiles.p50),
            _milliseconds(load.percentiles.p90),
            f"{load.batch:.1f}",
        )
    return rows


def _case_table(report: BenchReport, case: Case) -> Table:
    """Return the times of all engines in one case: a batch size, lengths and a way of decoding."""
    metric = next((quality.metric for quality in report.quality.values()), "")
    rows = table(
        "",
        "ms",
        "/token",
        "times as fast",
        "floor",
        "same",
        metric or "first",
        title=f"batch {case.batch}, {case.source} in, {case.new} out, {case.decoding}",
    )
    for name, timing in case.timings.items():
        quality = report.quality.get(name)
        score = f"{quality.score.value:.1f}" if quality else "–"
        rows.add_row(
            name,
            f"{1000 * statistics.median(timing.total):,.0f}",
            f"{1000 * timing.per_token:.2f}",
            f"{timing.ratio.value:.2f} [{timing.ratio.low:.2f}, {timing.ratio.high:.2f}]",
            "–" if timing.floor is None else f"{timing.floor:.0%}",
            "–" if timing.identical is None else f"{timing.identical:.0%}",
            score if metric else f"{1000 * statistics.median(timing.first):,.0f}",
        )
    return rows


def show_changes(changes: Sequence[Change], gone: Sequence[str], old: BenchReport, new: BenchReport) -> None:
    """Print the changes between two reports, and the differences of their environments."""
    screen = console()
    rows = table("new over old", "figure", "ratio", "95 %", "")
    for change in changes:
        ratio = change.ratio
        rows.add_row(
            change.what,
            change.figure,
            f"{ratio.value:.3f}",
            f"[{ratio.low:.3f}, {ratio.high:.3f}]",
            "worse" if change.worse else "",
        )
    screen.print(rows)
    for name in gone:
        screen.print(f"missing: {name}")
    for key, value in old.environment.items():
        if new.environment.get(key) != value and key not in ("memory", "commit"):
            screen.print(f"differs: {key}: {value} | {new.environment.get(key)}", soft_wrap=True)


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:,.0f}"

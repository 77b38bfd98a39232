"""Reports of benchmarks as tables on stdout, 80 columns wide where there is no terminal to ask."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ft.reports.terminal import console, table

if TYPE_CHECKING:
    from lora_ft.bench.regressions import Change
    from lora_ft.bench.report import BenchReport, Case


def show_report(found: BenchReport, page: Path) -> None:
    """The figures that one looks at first; the rest is on the page."""
    screen = console()
    for case in found.cases:
        screen.print(_case(found, case))
        screen.print()
    if found.quality:
        metric = next(iter(found.quality.values())).metric
        made = table("", metric, "against the reference", "same", "s/row", title="real rows, natural length")
        for name, quality in found.quality.items():
            change = quality.difference
            made.add_row(
                name,
                f"{quality.score.value:.1f}",
                f"{change.value:+.1f} [{change.low:+.1f}, {change.high:+.1f}]" if change else "is it",
                f"{quality.identical:.0%}",
                f"{quality.seconds / quality.rows:.3f}",
            )
        screen.print(made)
        screen.print()
    for name, service in found.serving.items():
        made = table("requests/s", "answered", "good", "p50 ms", "p90 ms", "batch", title=name)
        for load in service.loads:
            made.add_row(
                f"{load.offered:.2f}",
                f"{load.answered:.2f}",
                f"{load.goodput:.2f}",
                _milliseconds(load.percentiles.p50),
                _milliseconds(load.percentiles.p90),
                f"{load.batch:.1f}",
            )
        screen.print(made)
        assert found.suite.serving is not None
        knee = f"{service.knee:.2f} requests/s" if service.knee else "none of these loads"
        screen.print(f"within {found.suite.serving.slo:g} s for nine of ten: {knee}\n")
    screen.print(
        f"{found.verdict}{', interrupted' if found.interrupted else ''}; {found.suite.rounds} rounds; "
        f"harness {found.harness.share:.2%}; memory read at {found.bandwidth / 1e9:.1f} GB/s",
    )
    for warning in found.warnings:
        screen.print(f"warning: {warning}", soft_wrap=True)
    screen.print(f"page: {page}", soft_wrap=True)


def _case(found: BenchReport, case: Case):  # type: ignore[no-untyped-def]  # rich's Table
    metric = next((quality.metric for quality in found.quality.values()), "")
    made = table(
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
        quality = found.quality.get(name)
        score = f"{quality.score.value:.1f}" if quality else "–"
        made.add_row(
            name,
            f"{1000 * statistics.median(timing.total):,.0f}",
            f"{1000 * timing.per_token:.2f}",
            f"{timing.ratio.value:.2f} [{timing.ratio.low:.2f}, {timing.ratio.high:.2f}]",
            "–" if timing.floor is None else f"{timing.floor:.0%}",
            "–" if timing.identical is None else f"{timing.identical:.0%}",
            score if metric else f"{1000 * statistics.median(timing.first):,.0f}",
        )
    return made


def show_changes(changes: Sequence[Change], gone: Sequence[str], old: BenchReport, new: BenchReport) -> None:
    """What `compare` found, and where the two reports are of unlike machines."""
    screen = console()
    made = table("new over old", "figure", "ratio", "95 %", "")
    for change in changes:
        ratio = change.ratio
        made.add_row(
            change.what,
            change.figure,
            f"{ratio.value:.3f}",
            f"[{ratio.low:.3f}, {ratio.high:.3f}]",
            "worse" if change.worse else "",
        )
    screen.print(made)
    for name in gone:
        screen.print(f"missing: {name}")
    for key, value in old.environment.items():
        if new.environment.get(key) != value and key not in ("memory", "commit"):
            screen.print(f"differs: {key}: {value} | {new.environment.get(key)}", soft_wrap=True)


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:,.0f}"

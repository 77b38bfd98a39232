"""Reports of benchmarks in the terminal: the tables of `lora_ft.bench.tables`, within 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ft.reports.terminal import console, render_table

if TYPE_CHECKING:
    from lora_ft.bench.regressions import Change
    from lora_ft.bench.report import BenchReport


def show_report(report: BenchReport, page: Path) -> None:
    """Print speeds, scores and latencies under load. The page has all figures."""
    from lora_ft.bench import tables

    screen = console()
    for table in (*tables.speeds(report), *tables.quality(report), *tables.serving(report)):
        screen.print(render_table(table))
        screen.print()
    for sentence in tables.knees(report):
        screen.print(sentence)
    screen.print(
        f"{report.verdict}{', interrupted' * report.interrupted}; {report.suite.rounds} rounds; "
        f"harness {report.harness.share:.2%}; memory bandwidth {report.bandwidth / 1e9:.1f} GB/s",
    )
    for warning in report.warnings:
        screen.print(f"warning: {warning}", soft_wrap=True)
    screen.print(f"page: {page}", soft_wrap=True)


def show_changes(changes: Sequence[Change], missing: Sequence[str], old: BenchReport, new: BenchReport) -> None:
    """Print changed figures, engines missing from the new report, and differences between the machines."""
    from lora_ft.bench import tables

    screen = console()
    screen.print(render_table(tables.changes(changes)))
    for name in missing:
        screen.print(f"missing: {name}")
    for key, value in old.environment.items():
        if new.environment.get(key) != value and key not in ("memory", "commit"):
            screen.print(f"differs: {key}: {value} | {new.environment.get(key)}", soft_wrap=True)

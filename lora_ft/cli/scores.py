"""The commands `evaluate` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lora_ft.cli.options import (
    Base,
    BatchSize,
    Changed,
    Json,
    Limit,
    Metrics,
    Overrides,
    Overwrite,
    Quiet,
    ScoredSplit,
    TaskOption,
)
from lora_ft.cli.results import show
from lora_ft.core.streams import say
from lora_ft.reports.screen import Screen


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run or bank; with --task any other model.")],
    base: Base = None,
    split: ScoredSplit = None,
    limit: Limit = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also score the base without the adapter.")] = False,
    task: TaskOption = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="NAME",
            help="Adapter of a bank, by name. Default: every adapter on its own task, or the base if --task is given.",
        ),
    ] = None,
    set_: Overrides = [],  # noqa: B006  (typer copies it)
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="FILE", help="Write every answer to a file (jsonl).")
    ] = None,
    batch_size: BatchSize = 16,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Score a model by its task's metrics, with intervals.

    Scores are on the 0-100 scale, each with its 95 % interval. Exit code 1 if an adapter of a bank was not scored.
    """
    from lora_ft.cli.tables import show_bank_evaluation, show_evaluation
    from lora_ft.core.errors import UsageError
    from lora_ft.evaluate import evaluate as score
    from lora_ft.evaluate import evaluate_bank
    from lora_ft.export.runtime.manifest import is_bank

    options: dict[str, Any] = {
        "split": split.value if split else None,
        "limit": limit,
        "baseline": baseline,
        "batch_size": batch_size,
    }
    if not task and not adapter and is_bank(Path(model)):
        if predictions:
            raise UsageError("--predictions requires one adapter of a bank", "name it with --adapter")
        with Screen(quiet=quiet) as screen:
            scores = evaluate_bank(model, overrides=set_, progress=screen, **options)
        show(scores, show_bank_evaluation, as_json=as_json)
        return int(bool(scores.failed))
    options |= {"task": task, "adapter": adapter, "base": base, "overrides": set_, "predictions": predictions}
    with Screen(quiet=quiet) as screen:
        evaluation = score(model, progress=screen, **options)
    show(evaluation, show_evaluation, as_json=as_json)
    return 0


def compare(
    models: Annotated[list[str], typer.Argument(metavar="RUN...", help="Evaluated runs, or files of answers (jsonl).")],
    split: ScoredSplit = None,
    metric: Metrics = [],  # noqa: B006
    task: TaskOption = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with all texts side by side.")
    ] = None,
    rows: Changed = 3,
    page_rows: Annotated[int, typer.Option(min=1, help="Number of most-changed rows on the page.")] = 200,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compare answers of runs with those of the first.

    Prints differences with 95 % intervals and p-values, and the most changed rows.
    """
    from lora_ft.cli.tables import show_comparison
    from lora_ft.compare import compare as compare_answers
    from lora_ft.core.files import write_text
    from lora_ft.core.output_paths import refuse_file
    from lora_ft.reports.comparison_page import render

    if html is not None:
        refuse_file(html, "--html", inputs=models, overwrite=overwrite)
    comparison = compare_answers(models, split=split.value if split else None, metrics=metric, task=task)
    show(comparison, lambda result: show_comparison(result, rows), as_json=as_json)
    if html is not None:
        write_text(html, render(comparison, rows=page_rows))
        if not as_json:
            say(f"page: {html}")

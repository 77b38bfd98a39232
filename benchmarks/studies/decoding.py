"""Compare ways of decoding on the test rows of trained runs: scores and length of answers.

    python -m benchmarks.studies.decoding RUN... [--limit 500] [--out FOLDER] [--json FILE]

Each run is exported in 8 bits, and the bundle answers the rows in every way. Differences from greedy search are paired.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import run_command
from benchmarks.task_results import write_tasks
from lora_ft.compare import compare
from lora_ft.core.plain import plain, plain_fields
from lora_ft.core.progress import Progress
from lora_ft.evaluate import evaluate
from lora_ft.export_onnx import export_onnx
from lora_ft.reports.markdown import interval, table
from lora_ft.reports.screen import Screen
from lora_ft.runs.run import TASK, Run

VERSION = 1
RESULTS = Path(__file__).parents[1] / "results" / "decoding.json"
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "4 beams": {"num_beams": 4},
    "one sample": {"do_sample": True, "temperature": 0.7, "top_k": 0},
    "`mbr: 8`": {"do_sample": True, "temperature": 0.7, "top_k": 0, "mbr": 8},
}
_PRECISION = "int8"


def measure(run: Run, out: Path, progress: Progress, *, limit: int | None = None) -> dict[str, Any]:
    """Return the figures of each way of decoding.

    Args:
        run: Run with test rows.
        out: Folder for the bundle and the answers.
        progress: Receives stages and notes.
        limit: Maximum number of rows.
    """
    bundle = out / run.folder.name
    export_onnx(run, bundle, precision=_PRECISION, force=True, progress=progress)  # all ways take the same bundle
    answers, evaluations = [], []
    for number, generate in enumerate(WAYS.values()):
        answers.append(out / f"{run.folder.name}-{number}.jsonl")
        task = run.task.model_copy(update={"generate": run.task.generate.model_copy(update=generate)})
        evaluations.append(evaluate(bundle, task=task, limit=limit, predictions=answers[-1], progress=progress))
    comparison = compare(answers, task=run.folder / TASK)
    ways = {}
    for name, evaluation, contender in zip(WAYS, evaluations, comparison.contenders, strict=True):
        difference = contender.differences.get(comparison.by)
        ways[name] = {
            "score": plain(contender.scores[comparison.by]),
            "difference": plain_fields(difference) if difference else None,
            "tokens": evaluation.model.mean_tokens,
        }
    return {"metric": comparison.by, "rows": len(comparison.prompts), "precision": _PRECISION, "ways": ways}


def tables(results: dict[str, Any]) -> str:
    """Return the table of the documentation, and the precision of the bundles."""
    lines = []
    for name, figures in results["tasks"].items():
        for number, (way, figure) in enumerate(figures["ways"].items()):
            lines.append(
                (
                    "" if number else f"{name} ({figures['rows']} rows, {figures['metric']})",
                    way,
                    interval(figure["score"]),
                    interval(figure["difference"]["estimate"], sign="+") if figure["difference"] else "",
                    f"{figure['tokens']:.0f}",
                )
            )
    columns = ["task", "decoding", "score", "difference from greedy, paired", "tokens"]
    precisions = ", ".join(dict.fromkeys(figures["precision"] for figures in results["tasks"].values()))
    return f"{table(columns, lines)}\n\nBundles in {precisions};"


def _main(
    runs: list[Path],
    out: Annotated[Path, typer.Option(help="Folder for bundles and answers.")] = Path("runs/decoding"),
    json_file: Annotated[Path, typer.Option("--json", help="JSON file of the figures.")] = RESULTS,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of rows of each task.")] = None,
) -> None:
    """Measure the runs and print the table."""
    with Screen() as screen:
        tasks = {}
        for run in map(Run, runs):
            tasks[run.task.name] = measure(run, out, screen, limit=limit)
    print(tables(write_tasks(json_file, VERSION, tasks)))


if __name__ == "__main__":
    run_command(_main)

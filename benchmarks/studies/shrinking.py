"""Measure the trade of a shrunk base: scores and times of students with fewer decoder layers.

    python -m benchmarks.studies.shrinking RUN [--decoder-layers 4] [--set data.limit.train=8000] [--json FILE]

The merged checkpoint of RUN is shrunk and learns RUN's task again, all weights, with RUN as its teacher. All models are
scored on the test rows of the task in PyTorch. Their bundles are timed in turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import run_command
from lora_ft.bench.run import bench
from lora_ft.bench.suite import Suite
from lora_ft.compare import compare
from lora_ft.core.files import write_json
from lora_ft.core.plain import plain, plain_fields
from lora_ft.core.progress import Progress
from lora_ft.doctor import environment
from lora_ft.evaluate import evaluate
from lora_ft.merge import merge
from lora_ft.reports.markdown import interval, table
from lora_ft.reports.screen import Screen
from lora_ft.runs.run import TASK, Run
from lora_ft.shrink import shrink
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from lora_ft.train import train

RESULTS = Path(__file__).parents[1] / "results" / "shrinking.json"
_PRECISION = "int8"
_LEARNING_RATE = 3e-4


def measure(
    teacher: Run, layers: Sequence[int], overrides: list[str], out: Path, progress: Progress, *, rounds: int = 9
) -> dict[str, Any]:
    """Train the students, score and time them beside their teacher, and return the figures.

    Args:
        teacher: Run with test rows.
        layers: Number of decoder layers of each student.
        overrides: Keys to change in the students' task.
        out: Folder for students and bundles.
        progress: Receives stages and notes.
        rounds: Timings of each case.
    """
    checkpoint = merge(teacher, out / "teacher", progress=progress).out
    runs = [teacher]
    for kept in layers:
        base = shrink(checkpoint, out / f"base-{kept}", decoder_layers=kept, progress=progress).out
        runs.append(train(_task(teacher, base, overrides), out / f"layers-{kept}", progress=progress))
    for run in runs:
        evaluate(run, progress=progress)
    comparison = compare(runs)
    suite = Suite(name="shrinking", engines=(f"onnx/{_PRECISION}",), rounds=rounds)
    report = bench([str(run.folder) for run in runs], suite, out / "bench", work=out / "models", progress=progress)
    models = []
    sides = zip([None, *layers], runs, comparison.contenders, report.contestants, strict=True)
    for count, run, contender, engine in sides:
        timings = [case.timings[engine.name] for case in report.cases]
        difference = contender.differences.get(comparison.by)
        models.append(
            {
                "decoder_layers": count,
                "rows": run.metrics["rows"]["train"],
                "steps": run.metrics["steps"],
                "training_seconds": run.metrics["speed"]["seconds"],
                "megabytes": engine.megabytes,
                "score": plain(contender.scores[comparison.by]),
                "difference": plain_fields(difference) if difference else None,
                "milliseconds": [round(1000 * statistics.median(timing.total), 1) for timing in timings],
                "speed_up": [timing.ratio.value for timing in timings],
            }
        )
    return {
        "environment": environment(),
        "task": teacher.task.name,
        "test_rows": len(comparison.prompts),
        "metric": comparison.by,
        "precision": _PRECISION,
        "rounds": rounds,
        "verdict": report.verdict,
        "batches": [case.batch for case in report.cases],
        "source": report.cases[0].source,
        "new": report.cases[0].new,
        "models": models,
    }


def _task(teacher: Run, base: Path, overrides: list[str]) -> Task:
    """Return the teacher's task for a student on `base`."""
    settings = [
        f"base={base}",
        "method=full",
        f"train.learning_rate={_LEARNING_RATE}",
        f"train.distill={{teacher: {teacher.folder}}}",
    ]
    return load_task(teacher.folder / TASK, [*settings, *overrides])


def tables(results: dict[str, Any]) -> str:
    """Return the table of the documentation, and what it was measured on."""
    lines = [
        (
            str(model["decoder_layers"] or "all (the teacher)"),
            interval(model["score"]),
            interval(model["difference"]["estimate"], sign="+") if model["difference"] else "",
            f"{model['megabytes']:.0f}",
            *(
                f"{milliseconds:.0f} ({speed_up:.2f})"
                for milliseconds, speed_up in zip(model["milliseconds"], model["speed_up"], strict=True)
            ),
            f"{model['rows']:,} rows, {model['steps']:,} steps, {model['training_seconds'] / 60:.0f} min",
        )
        for model in results["models"]
    ]
    batches = [f"batch {batch}, ms (speed-up)" for batch in results["batches"]]
    columns = ["decoder layers", results["metric"], "difference, paired", "bundle, MB", *batches, "training"]
    return "\n".join(
        [
            table(columns, lines),
            "",
            f"{results['task']}: {results['test_rows']} test rows scored in PyTorch; bundles in "
            f"{results['precision']}, {results['source']} tokens in, {results['new']} out, medians of "
            f"{results['rounds']} rounds in turns ({results['verdict']}).",
        ]
    )


def _main(
    run: Path,
    out: Annotated[Path, typer.Option(help="Folder for students and bundles.")] = Path("runs/shrinking"),
    json_file: Annotated[Path, typer.Option("--json", help="JSON file of the figures.")] = RESULTS,
    decoder_layers: Annotated[list[int], typer.Option(help="Decoder layers of a student; repeatable.")] = [4],  # noqa: B006
    set_: Annotated[list[str], typer.Option("--set", help="Override a key of the students' task.")] = [],  # noqa: B006
) -> None:
    """Measure the students and print the table."""
    with Screen() as screen:
        figures = measure(Run(run), decoder_layers, set_, out, screen)
    write_json(json_file, figures)
    print(tables(figures))


if __name__ == "__main__":
    run_command(_main)

"""Measure the whole workflow on DialogSum: training speed, ROUGE, parity with PyTorch, generation latency.

    python -m benchmarks.studies.dialogsum DATA_FOLDER [--out FOLDER] [--json FILE] [--set train.compile=on]

DATA_FOLDER holds train.jsonl, dev.jsonl and test.jsonl with the columns of benchmarks/tasks/dialogsum.yaml.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import run_command
from lora_ft.bench.models import BenchModel
from lora_ft.bench.run import measure as bench
from lora_ft.bench.suite import Suite
from lora_ft.core.files import folder_size, write_json
from lora_ft.doctor import environment
from lora_ft.evaluate import evaluate
from lora_ft.export_onnx import export_onnx
from lora_ft.merge import merge
from lora_ft.reports.screen import Screen
from lora_ft.tasks.files import load_task
from lora_ft.train import train

TASK = Path(__file__).parents[1] / "tasks" / "dialogsum.yaml"


def measure(data: Path, out: Path, overrides: list[str]) -> dict[str, Any]:
    """Train, score, export and time below `out`; return all figures."""
    task = load_task(TASK, [f"data.root={data}", *overrides])
    checkpoint, bundle = out / "checkpoint", out / "bundle"
    with Screen() as screen:
        run = train(task, out / "run", overwrite=True, progress=screen)
        scores = evaluate(str(run.folder), baseline=True, progress=screen)
        merged = merge(run, checkpoint, overwrite=True, progress=screen)
        exported = export_onnx(
            str(checkpoint), bundle, verify_rows=scores.rows, verify_split="test", overwrite=True, progress=screen
        )
        subject = BenchModel("dialogsum", out, checkpoint, bundle)
        suite = Suite(name="dialogsum", engines=("torch/fp32", "onnx/fp32"), rounds=7)
        timed = bench([subject], suite, out / "bench", task=task, overwrite=True, progress=screen)
    return {
        "environment": environment(),
        "task": task.model_dump(mode="json", exclude={"data"}),
        "training": run.metrics,
        "evaluation": scores.as_dict() | {"predictions": None},
        "megabytes": {
            "adapter": folder_size(run.adapter) / 1e6,
            "checkpoint": merged.bytes / 1e6,
            "bundle": exported.bytes / 1e6,
        },
        "parity": exported.parity.as_dict(),
        "latency": [
            {
                "batch": case.batch,
                "median": {
                    name.split("/")[0]: statistics.median(timing.total) for name, timing in case.timings.items()
                },
                "ratio": {name.split("/")[0]: timing.ratio.value for name, timing in case.timings.items()},
            }
            for case in timed.cases
        ],
    }


def _main(
    data: Path,
    out: Annotated[Path, typer.Option(help="Folder for run, checkpoint and bundle.")] = Path("runs/dialogsum"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
    set_: Annotated[list[str], typer.Option("--set", help="Override a key of the task.")] = [],  # noqa: B006
) -> None:
    """Run the whole workflow and print the figures."""
    figures = measure(data, out, set_)
    if json_file is not None:
        write_json(json_file, figures)
    speed, evaluation, parity = figures["training"]["speed"], figures["evaluation"], figures["parity"]
    score, before = (evaluation[part]["scores"]["rouge1"] for part in ("scores", "baseline"))
    how = f"{figures['training']['precision']}, {'compiled' if figures['training']['compiled'] else 'not compiled'}"
    print(
        f"training: {speed['samples_per_second']} samples/s, "
        f"{speed['samples_per_second_second_half']} in the second half ({how})"
    )
    print(
        f"ROUGE-1 on {evaluation['rows']} test rows: {score['mean']:.1f} [{score['low']:.1f}, {score['high']:.1f}]; "
        f"base {before['mean']:.1f}"
    )
    print(f"ONNX and PyTorch return the same text for {parity['identical_rows']} of {parity['rows']} rows")
    for row in figures["latency"]:
        print(
            f"batch {row['batch']}: torch {1000 * row['median']['torch']:.0f} ms, "
            f"ONNX {1000 * row['median']['onnx']:.0f} ms, speed-up {row['ratio']['onnx']:.2f}"
        )


if __name__ == "__main__":
    run_command(_main)

"""Score adapters on real tasks. Each adapter is trained once and compared with its unchanged base.

    python -m benchmarks.studies.scores DATA_FOLDER [--only jfleg] [--out FOLDER]

DATA_FOLDER holds a folder for each task file of `TASKS`; recipes contain their rows. Tasks that have figures in the
JSON file are not measured again, and existing runs in FOLDER are not trained again. docs/scores.md is written from the
JSON file. Tasks whose answers follow a JSON schema are also scored without it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import run_command
from lora_ft.core.errors import UsageError
from lora_ft.core.files import read_json, write_json, write_text
from lora_ft.core.hardware import cores
from lora_ft.core.progress import Progress
from lora_ft.data.splits import load_splits
from lora_ft.doctor import environment
from lora_ft.evaluate import evaluate
from lora_ft.evaluation.metrics import measure as measured
from lora_ft.evaluation.metrics.structured import SAME_VALUE, VALID
from lora_ft.reports.markdown import interval, table
from lora_ft.reports.screen import Screen
from lora_ft.runs.run import PREDICTIONS, TASK, Run, is_run
from lora_ft.tasks.files import load_task
from lora_ft.train import train

VERSION = 1
TASK_FILES = Path(__file__).parents[1] / "tasks"
RESULTS = Path(__file__).parents[1] / "results" / "scores.json"
PAGE = Path(__file__).parents[2] / "docs" / "scores.md"
# Folder of the rows by task file; None for a recipe.
TASKS: dict[str, str | None] = {
    "dialogsum-full": "dialogsum",
    "jfleg": "jfleg_grammar",
    "e2e": "e2e_nlg",
    "medquad": "medquad_short",
    "banking77": "banking77",
    "groupchat": "groupchat",
    "clinical-fhir": None,
    "text-classification": None,
    "group-chat": None,
}
_REFERENCES = "refs"  # column of further references, for rows with several
_SHOWN = (
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
    "bleu",
    "chrf",
    "exact_match",
    SAME_VALUE,
    VALID,
    "accuracy",
    "macro_f1",
)


def measure(
    data: Path, tasks: Path, out: Path, results: Path, only: list[str], progress: Progress, *, tried: int | None = None
) -> None:
    """Train and score each task below `out`, and write `results` after each.

    Args:
        data: Folder with one folder of rows for each task.
        tasks: Folder of the task files.
        out: Folder of the runs.
        results: JSON file. Tasks that it already contains are not measured again.
        only: Names of tasks; empty for all.
        progress: Receives stages and notes.
        tried: Number of runs that were tried for each of these tasks; None if it was not counted.

    Raises:
        UsageError: A task does not exist.
        LoraFtError: A task or its data is unusable.
    """
    unknown = [name for name in only if name not in TASKS]
    if unknown:
        raise UsageError(f"task {unknown[0]!r} does not exist", f"choose one of {', '.join(TASKS)}")
    figures: dict[str, Any] = read_json(results) if results.is_file() else {"version": VERSION, "tasks": {}}
    for name in only or TASKS:
        if name in figures["tasks"]:
            progress.note(f"{name}: skipped, already measured")
            continue
        progress.note(name)
        run = out / name
        if not is_run(run):
            train(load_task(*_train_arguments(name, data, tasks)), run, progress=progress)
        figures["tasks"][name] = _measured(run, name, progress) | {"tried": tried}
        write_json(results, figures)


def _train_arguments(name: str, data: Path | str, tasks: Path | None) -> tuple[Path | str, list[str]]:
    """Return the arguments of `lora-ft train`: the path of a task file or the name of a recipe, and overrides."""
    folder = TASKS[name]
    if folder is None:
        return name, ["base=offline"]
    file = f"{name}.yaml"
    return tasks / file if tasks else f"benchmarks/{file}", [f"data.root={data}/{folder}"]


def _measured(folder: Path, name: str, progress: Progress) -> dict[str, Any]:
    run, (file, overrides) = Run(folder), _train_arguments(name, "DATA", None)
    free = None
    if run.task.generate.json_schema:  # first, since the run keeps the scores of the last evaluation
        task = load_task(folder / TASK, ["generate.constrained=false"])
        free = evaluate(str(folder), task=task, progress=progress).as_dict()["scores"]["scores"]
    scored = evaluate(str(folder), baseline=True, progress=progress).as_dict()
    return {
        "environment": environment(),
        "command": f"lora-ft train {file} --set {overrides[0]}",
        "training": {
            key: run.metrics[key] for key in ("rows", "steps", "global_batch", "precision", "best_step", "speed")
        },
        "rows": scored["rows"],
        "scores": scored["scores"]["scores"],
        "baseline": scored["baseline"]["scores"],
        "difference": scored["difference"],
        "valid_labels": scored["scores"]["valid_labels"],
        "cut_share": scored["scores"]["cut_share"],
        "warnings": scored["warnings"],
        "several": _several(run),
        "unconstrained": free,
    }


def _several(run: Run) -> dict[str, Any] | None:
    """Return ROUGE against each reference (averaged) and against the best one, or None if rows have one reference."""
    examples = load_splits(run.task, ["test"]).test
    references: list[Any] = [example.row.get(_REFERENCES) for example in examples]
    if run.task.data.references or not all(isinstance(texts, list) and len(texts) > 1 for texts in references):
        return None
    lines = (run.folder / PREDICTIONS.format("test")).read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["output"] for line in lines]
    count = min(map(len, references))
    score = lambda texts: measured(["rouge"], answers, texts, run.task.evaluate)  # noqa: E731
    each, best = [score([[texts[i]] for texts in references]) for i in range(count)], score(references)
    return {
        "references": count,
        "average": {name: statistics.mean(scores[name].value for scores in each) for name in best},
        "best": {name: scores.value for name, scores in best.items()},
    }


def page(figures: Mapping[str, Any]) -> str:
    """Return the content of docs/scores.md."""
    lines = [
        "# Scores",
        "",
        "One LoRA adapter was trained for each task on the base `offline` (a FLAN-T5-small). The adapter and the",
        "unchanged base were scored on test rows. Scores are means with 95 % bootstrap intervals, from 0 to 100.",
        "[How scores are computed](scoring.md) explains how to read them.",
        "",
        "This page is written by `python -m benchmarks.studies.scores DATA` from `benchmarks/results/scores.json`.",
        "The warnings have the wording of this version.",
    ]
    for name, result in sorted(figures["tasks"].items(), key=lambda item: list(TASKS).index(item[0])):
        training = result["training"]
        rows, speed, machine = training["rows"], training["speed"], result["environment"]
        lines += [
            "",
            f"## {name}",
            "",
            "```console",
            result["command"],
            f"lora-ft evaluate runs/{name} --baseline",
            "```",
            "",
            f"{rows['train']:,} training rows, {training['steps']:,} steps of {training['global_batch']}, "
            f"{speed['seconds'] / 60:,.0f} min on {cores(int(machine['cores'].split()[0]), machine['cpu'])} "
            f"({training['precision']}); {result['rows']:,} test rows.",
            "",
            table(
                ["", "before", "after", "difference, paired"],
                [
                    (
                        metric,
                        interval(result["baseline"][metric]),
                        interval(result["scores"][metric]),
                        interval(result["difference"][metric], sign="+"),
                    )
                    for metric in _SHOWN
                    if metric in result["scores"]
                ],
            ),
        ]
        if result["valid_labels"] is not None:
            lines += ["", f"{result['valid_labels']:.1%} of the answers are valid labels."]
        if result["several"] is not None:
            several = result["several"]
            average, best = (
                " / ".join(f"{several[how][name]:.1f}" for name in _SHOWN[:3]) for how in ("average", "best")
            )
            lines += [
                "",
                f"ROUGE-1 / 2 / L against each of {several['references']} references, averaged: {average}; "
                f"against the best reference: {best}.",
            ]
        if result.get("unconstrained"):
            free = ", ".join(f"{name} {interval(result['unconstrained'][name])}" for name in (SAME_VALUE, VALID))
            lines += ["", f"The answers follow the task's JSON schema. Without it: {free}."]
        if result.get("tried"):
            lines += ["", f"Runs that were tried for this table: {result['tried']}."]
        lines += [f"\nWarning: {text}." for text in result["warnings"]]
    return "\n".join(lines) + "\n"


def _main(
    data: Path,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/scores"),
    json_file: Annotated[Path, typer.Option("--json", help="JSON file of the figures, read and updated.")] = RESULTS,
    only: Annotated[list[str], typer.Option("--only", help="Task to measure; repeatable.")] = [],  # noqa: B006
    tried: Annotated[int | None, typer.Option(help="Number of runs that were tried for each task.")] = None,
) -> None:
    """Measure all tasks that have no figures yet, and write the page."""
    with Screen() as screen:
        measure(data, TASK_FILES, out, json_file, only, screen, tried=tried)
    if json_file == RESULTS:
        PAGE.parent.mkdir(exist_ok=True)
        write_text(PAGE, page(read_json(RESULTS)))


if __name__ == "__main__":
    run_command(_main)

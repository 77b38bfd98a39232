"""The verb `train`: one task, or several in one pass."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ft.cli import hub
from lora_ft.cli.choices import EngineChoice, GoOnFrom, going_on_from
from lora_ft.reports.screen import Screen

if TYPE_CHECKING:
    from lora_ft.multi_lora.engine import Engine
    from lora_ft.tasks.schema import Task
    from lora_ft.train_many import Packed


def train(
    tasks: Annotated[
        list[str],
        typer.Argument(metavar="TASK...", help="Task files (YAML), recipes by name, or folders of task files."),
    ],
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. --set train.learning_rate=5e-4."),
    ] = [],  # noqa: B006  (typer copies it)
    from_: GoOnFrom = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the run, runs/NAME by default; of several, or with Ray, of the runs."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on exactly, or train a finished run longer.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    pack_size: Annotated[
        int | None, typer.Option(min=1, help="Of several tasks: most adapters in one pass; by default what fits.")
    ] = None,
    engine: Annotated[
        EngineChoice, typer.Option(help="Where passes run: this process, or a Ray cluster.")
    ] = EngineChoice.local,
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of the Ray cluster; by default the one this machine is part of.")
    ] = None,
    cpus_per_pack: Annotated[
        float | None, typer.Option(min=0.01, help="With Ray: of a pass; by default 1 beside a GPU, else all of a node.")
    ] = None,
    gpus_per_pack: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="With Ray: of a pass, e.g. 0.5; by default 1 if there is any."),
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=-1, help="With Ray: of a pass whose worker was lost; 3 by default, -1 for any.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="With Ray: for snapshots, where nodes share no --out folder.")
    ] = None,
    push_to_hub: hub.PushTo = None,
    private: hub.Private = False,
) -> int:
    """Train a task's adapter, or all weights; several tasks, or a `grid` of one, on one base in one pass.

    Ctrl-C, SIGTERM and SIGHUP save a checkpoint; --resume goes on from it, or from a finished run with more epochs.
    Exit code 1 if any of several failed; 130, 143 or 129 after a signal.
    """
    from lora_ft.core.errors import UsageError

    of_ray = {"address": address, "cpus": cpus_per_pack, "gpus": gpus_per_pack, "retries": retries, "storage": storage}
    given: dict[str, Any] = {key: value for key, value in of_ray.items() if value is not None}
    if given and engine is EngineChoice.local:
        raise UsageError(
            "--address, --cpus-per-pack, --gpus-per-pack, --retries and --storage are Ray's",
            "add --engine ray, or leave them out",
        )
    found = _load(tasks, [*set_, *going_on_from(from_)])
    if (len(found) > 1 or engine is EngineChoice.ray) and push_to_hub:
        raise UsageError("--push-to-hub uploads one run", "push each with `lora-ft push RUN REPO`")
    if len(found) == 1 and pack_size:
        raise UsageError("--pack-size is for several tasks", "leave it out")
    if engine is EngineChoice.ray:
        from lora_ft.multi_lora.ray_engine import RayEngine

        cluster = RayEngine(**given)
        return _several(found, out or Path("runs"), cluster, resume=resume, overwrite=overwrite, most=pack_size)
    if len(found) > 1:
        return _several(found, out or Path("runs"), None, resume=resume, overwrite=overwrite, most=pack_size)
    from lora_ft.cli.tables import show_run
    from lora_ft.train import train as job

    task, _ = found[0]
    destination = hub.destination(push_to_hub, private=private)
    with Screen() as screen:
        run = job(task, out or Path("runs") / task.name, resume=resume, overwrite=overwrite, progress=screen)
    if not screen.console.quiet:
        show_run(run)
        hub.upload(run.folder, destination)
    return 0


def _load(given: Sequence[str], overrides: Sequence[str]) -> list[tuple[Task, dict[str, Any]]]:
    """All tasks of files, folders and grids, each with what a grid sets in it."""
    from lora_ft.core.errors import UsageError
    from lora_ft.tasks.files import load_tasks

    found = []
    for name in given:
        files: list[str | Path] = [name]
        if Path(name).is_dir():
            files = sorted(path for ending in ("yaml", "yml") for path in Path(name).glob(f"*.{ending}"))
            if not files:
                raise UsageError(f"the folder {name} holds no task files (*.yaml)", "name files, or another folder")
        for file in files:
            found += load_tasks(file, overrides)
    return found


def _several(
    found: Sequence[tuple[Task, Mapping[str, Any]]],
    out: Path,
    engine: Engine | None,
    *,
    resume: bool,
    overwrite: bool,
    most: int | None,
) -> int:
    from lora_ft.cli.board import PackScreen
    from lora_ft.runs.grid_results import mark_best
    from lora_ft.train_many import train_pack

    with PackScreen() as screen, redirect_stdout(sys.stderr):  # Ray prints what it hears of lost workers
        packed = train_pack(
            [task for task, _ in found], out, resume=resume, overwrite=overwrite, most=most, engine=engine, board=screen
        )
    settings = {task.name: values for task, values in found if values}
    of_grid = [run for run in packed.runs if run.task.name in settings]
    best = mark_best(of_grid, settings, out) if of_grid else None
    _show(packed, out, best.task.name if best else None)
    return int(bool(packed.failed))


def _show(packed: Packed, out: Path, best: str | None) -> None:
    """Every adapter, a row each."""
    from lora_ft.reports.terminal import console, distinct, table

    screen = console()
    made = table("adapter", "steps", "best", "loss", "validation", "samples/s", "")
    names = distinct([run.task.name for run in packed.runs], 28)
    for run in packed.runs:
        metrics = run.metrics
        score = metrics["best_metric"]
        shown = "–" if score is None else f"{run.task.train.metric_for_best_model} {score:.2f}"
        made.add_row(
            names[run.task.name],
            f"{metrics['steps']:,}",
            f"{metrics['best_step'] or '–'}",
            f"{metrics['train_loss']:.3f}",
            shown,
            f"{metrics['speed']['samples_per_second'] or '–'}",
            "best" if run.task.name == best else "",
        )
    screen.print(made)
    for name, why in packed.failed.items():
        screen.print(f"failed: {name}: {why}", soft_wrap=True)
    screen.print(f"{len(packed.runs)} runs in {out}", soft_wrap=True)

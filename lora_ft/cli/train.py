"""The command `train`: one task, or several in one pass."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ft.cli import hub
from lora_ft.cli.options import EngineChoice, GoOnFrom, Json, Overrides, Overwrite, Quiet, start_overrides
from lora_ft.cli.results import show_json
from lora_ft.core.distributed import rank
from lora_ft.reports.screen import Screen

if TYPE_CHECKING:
    from lora_ft.multi_lora.engine import Engine
    from lora_ft.runs.run import Run
    from lora_ft.tasks.schema import Task

RUNS = Path("runs")


def train(
    tasks: Annotated[
        list[str], typer.Argument(metavar="TASK...", help="Task files (YAML), recipes, or folders of task files.")
    ],
    set_: Overrides = [],  # noqa: B006  (typer copies it)
    from_: GoOnFrom = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Folder to write. Default: runs/NAME, or runs for several tasks."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue exactly, or train a finished run longer.")] = False,
    overwrite: Overwrite = False,
    group_size: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum adapters trained in one pass. Default: as many as fit in memory."),
    ] = None,
    engine: Annotated[EngineChoice, typer.Option(help="This process, or a Ray cluster.")] = EngineChoice.local,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ray cluster. Default: the one of this machine.")
    ] = None,
    cpus_per_group: Annotated[
        float | None, typer.Option(min=0.01, help="Ray: CPUs of a pass. Default: 1 with a GPU, else all of a node.")
    ] = None,
    gpus_per_group: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Ray: GPUs of a pass, such as 0.5. Default: 1 if any.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=-1, help="Ray: restarts after a lost worker. Default: 3; -1 is unlimited.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Ray: URL for snapshots if nodes do not share --out.")
    ] = None,
    push_to_hub: hub.PushTo = None,
    private: hub.Private = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Train a task, or several on one base in one pass.

    A task trains an adapter, or all weights (method: full). A task file with a `grid` contains several tasks.

    Ctrl-C, SIGTERM and SIGHUP save a checkpoint. --resume continues from it, or trains a finished run for more epochs.
    Exit code 1 if any of several tasks failed; 130, 143 or 129 after a signal.
    """
    from lora_ft.core.errors import UsageError

    ray = {"address": address, "cpus": cpus_per_group, "gpus": gpus_per_group, "retries": retries, "storage": storage}
    ray_options: dict[str, Any] = {name: value for name, value in ray.items() if value is not None}
    if ray_options and engine is EngineChoice.local:
        raise UsageError(
            "--address, --cpus-per-group, --gpus-per-group, --retries and --storage are options of Ray",
            "add --engine ray, or leave them out",
        )
    loaded = _load_tasks(tasks, [*set_, *start_overrides(from_)])
    several = len(loaded) > 1 or engine is EngineChoice.ray
    if several and push_to_hub:
        raise UsageError("--push-to-hub uploads a single run", "push each with `lora-ft push RUN REPO`")
    if len(loaded) == 1 and group_size:
        raise UsageError("--group-size applies to several tasks (got one)", "leave it out")
    options: dict[str, Any] = {"resume": resume, "overwrite": overwrite}
    if several:
        cluster = _connect(ray_options) if engine is EngineChoice.ray else None
        options |= {"group_size": group_size, "engine": cluster}
        return _train_several(loaded, out or RUNS, options, as_json=as_json, quiet=quiet)
    destination = hub.destination(push_to_hub, private=private)
    task, _ = loaded[0]
    run = _train_one(task, out or RUNS / task.name, options, as_json=as_json, quiet=quiet)
    if rank() == 0:
        hub.upload(run.folder, destination, as_json=as_json, quiet=quiet)
    return 0


def _connect(options: dict[str, Any]) -> Engine:
    from lora_ft.multi_lora.ray_engine import RayEngine

    return RayEngine(**options)


def _load_tasks(names: Sequence[str], overrides: Sequence[str]) -> list[tuple[Task, dict[str, Any]]]:
    """Return all tasks of files, folders and grids, each with the values that its grid sets."""
    from lora_ft.core.errors import UsageError
    from lora_ft.tasks.files import load_tasks

    loaded = []
    for name in names:
        files: list[str | Path] = [name]
        if Path(name).is_dir():
            files = sorted(path for suffix in ("yaml", "yml") for path in Path(name).glob(f"*.{suffix}"))
            if not files:
                raise UsageError(f"the folder {name} contains no task files (*.yaml)", "name files, or another folder")
        for file in files:
            loaded += load_tasks(file, overrides)
    return loaded


def _train_one(task: Task, out: Path, options: dict[str, Any], *, as_json: bool, quiet: bool) -> Run:
    """Train one task and print its run. Only the first of several processes prints."""
    from lora_ft.cli.tables import show_run
    from lora_ft.train import train as train_task

    with Screen(quiet=quiet) as screen:
        run = train_task(task, out, progress=screen, **options)
    if rank() == 0:
        show_json(_summary(run)) if as_json else show_run(run)
    return run


def _train_several(
    loaded: Sequence[tuple[Task, Mapping[str, Any]]],
    out: Path,
    options: dict[str, Any],
    *,
    as_json: bool,
    quiet: bool,
) -> int:
    """Train several tasks, print their runs, and return the exit code."""
    from lora_ft.cli.group_screen import GroupScreen
    from lora_ft.cli.tables import show_runs
    from lora_ft.train_many import train_grid

    with GroupScreen(quiet=quiet) as screen, redirect_stdout(sys.stderr):  # Ray prints messages about lost workers
        result = train_grid(loaded, out, progress=screen, **options)
    if as_json:
        runs = [_summary(run) for run in result.runs]
        show_json({"runs": runs, "failed": result.failed, "best": result.best})
    else:
        show_runs(result, out)
    return int(bool(result.failed))


def _summary(run: Run) -> dict[str, Any]:
    return {"folder": run.folder, "task": run.task.name, "metrics": run.metrics}

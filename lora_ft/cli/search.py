"""The command `search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_ft.cli.options import Json, Overrides, Overwrite, Quiet, TaskArgument
from lora_ft.cli.results import show

if TYPE_CHECKING:
    from lora_ft.search import SearchResult


def search(
    task: TaskArgument,
    set_: Overrides = [],  # noqa: B006  (typer copies it)
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Folder to write. Default: runs/NAME-search.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Maximum number of trials.")] = 24,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps after which no trial begins.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Minutes of training after which no trial begins.")
    ] = None,
    finalists: Annotated[int, typer.Option(min=1, help="Finished trials to repeat and compare.")] = 2,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each finalist.")] = 2,
    group_size: Annotated[int, typer.Option(min=1, help="Maximum trials in one pass; fewer if memory is short.")] = 12,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished search exactly.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search values of a task's keys, and train the winner.

    The task file has a `search` space. Trials that are behind stop early, and new ones take their places in the pass.
    Ctrl-C, SIGTERM and SIGHUP save a snapshot; --resume continues from it.
    """
    from lora_ft.cli.group_screen import GroupScreen
    from lora_ft.search import search as run_search
    from lora_ft.tasks.files import load_search

    loaded, space = load_search(task, set_)
    with GroupScreen(quiet=quiet) as screen:
        result = run_search(
            loaded,
            out or Path("runs") / f"{loaded.name}-search",
            space=space,
            trials=trials,
            steps=steps,
            minutes=minutes,
            finalists=finalists,
            seeds=seeds,
            group_size=group_size,
            resume=resume,
            overwrite=overwrite,
            progress=screen,
        )
    show(result, _draw, as_json=as_json)


def _draw(result: SearchResult) -> None:
    from lora_ft.core.streams import say
    from lora_ft.runs.search_record import SEARCH_PAGE

    record = result.record
    by_number = {trial.number: trial for trial in record.trials}
    for finalist in record.finalists:
        settings = ", ".join(f"{key}={value}" for key, value in by_number[finalist.trial].settings.items())
        test = "" if finalist.p is None else f", p {finalist.p:.3f}"
        say(f"{by_number[finalist.trial].name}: {record.test_metric} {finalist.score:.1f}{test} ({settings})")
    say(str(result))
    say(f"page: {result.out / SEARCH_PAGE}")

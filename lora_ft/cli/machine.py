"""The commands `doctor` and `quickstart`: facts about the machine, and a run of every verb."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_ft.cli.options import Json, Overwrite, Quiet
from lora_ft.cli.results import show


def doctor(as_json: Json = False) -> None:
    """Print facts for a bug report: versions, CPU, GPUs, Hub."""
    from lora_ft.doctor import examine
    from lora_ft.reports.terminal import show_pairs

    show(examine(), show_pairs, as_json=as_json)


def quickstart(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder for all output.")] = Path("quickstart"),
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Base model. Default: flan-t5-small, or offline without the Hub."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train, score and export the shipped example.

    Runs train, merge, evaluate, export, generate and bench once, and prints one table of results.
    """
    from lora_ft.cli.quickstart import run_quickstart, show_quickstart
    from lora_ft.reports.screen import Screen

    with Screen(quiet=quiet) as screen:
        result = run_quickstart(out, base=base, overwrite=overwrite, screen=screen)
    show(result, show_quickstart, as_json=as_json)

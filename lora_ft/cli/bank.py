"""The commands of `lora-ft bank`: add, remove and list the adapters of a bank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_ft.cli.groups import GroupedCommands
from lora_ft.cli.options import Base, Json, MaxRougeDrop, Overwrite, Quiet, ScoreRows, VerifyRows
from lora_ft.cli.results import show
from lora_ft.core.streams import say
from lora_ft.reports.screen import Screen

app = typer.Typer(
    cls=GroupedCommands,
    rich_markup_mode=None,
    help="Add, remove and list adapters of a bank.\n\nA bank is a bundle written by `export --adapters`.",
)
Bank = Annotated[Path, typer.Argument(metavar="BANK", help="Bundle written by `export --adapters`.")]


@app.command()
def add(
    bank: Bank,
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs or PEFT folders, each [NAME=]RUN.")],
    base: Base = None,
    max_rouge_drop: MaxRougeDrop = 0.5,
    score_rows: ScoreRows = 200,
    verify_rows: VerifyRows = 16,
    force: Annotated[bool, typer.Option("--force", help="Add an adapter despite a larger drop.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add adapters to a bank, verified against PyTorch.

    The drop of scores is measured only if the bank's weights are rounded.
    """
    from lora_ft.bank import add as add_adapters
    from lora_ft.cli.tables import show_bank
    from lora_ft.deployment.bank_adapter import VerificationSettings

    checks = VerificationSettings(rows=verify_rows, score_rows=score_rows, max_drop=max_rouge_drop, force=force)
    with Screen(quiet=quiet) as screen:
        result = add_adapters(bank, runs, base=base, checks=checks, overwrite=overwrite, progress=screen)
    show(result, show_bank, as_json=as_json)


@app.command()
def remove(
    bank: Bank,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Adapters of the bank.")],
    as_json: Json = False,
) -> None:
    """Remove adapters from a bank."""
    from lora_ft.bank import remove as remove_adapters

    remove_adapters(bank, names)
    show({"bank": bank, "removed": names}, lambda _: say(f"{bank}: without {', '.join(names)}"), as_json=as_json)


@app.command(name="list")
def list_(bank: Bank, as_json: Json = False) -> None:
    """List adapters: size, agreement with PyTorch, drop."""
    from lora_ft.cli.tables import show_entries
    from lora_ft.deployment.bank_entries import entries

    show(entries(bank), show_entries, as_json=as_json)

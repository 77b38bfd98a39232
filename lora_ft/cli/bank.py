"""The verbs of `lora-ft bank`: put adapters into a bank, take them out, list them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_ft.core.streams import say
from lora_ft.reports.screen import Screen

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The adapters of a bank, which `export --adapters` makes: its base stays as it is.",
)
Bank = Annotated[Path, typer.Argument(metavar="BANK", help="A bundle made with `export --adapters`.")]


@app.command()
def add(
    bank: Bank,
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, folders saved by peft, or NAME=RUN.")],
    base: Annotated[str | None, typer.Option(help="Instead of the base that a run or an adapter names.")] = None,
    max_rouge_drop: Annotated[
        float, typer.Option(min=0, help="Points that the task's evaluate.metric may lose where weights are rounded.")
    ] = 0.5,
    score_rows: Annotated[int, typer.Option(min=1, help="Rows of the task that are scored then.")] = 200,
    verify_rows: Annotated[int, typer.Option(min=1, help="Rows of the task compared with PyTorch.")] = 16,
    force: Annotated[bool, typer.Option("--force", help="Take an adapter that loses more.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace adapters of these names.")] = False,
) -> None:
    """Put runs' adapters into a bank, each compared with PyTorch first."""
    from lora_ft.bank import add as job
    from lora_ft.cli.tables import show_shelved
    from lora_ft.deployment.bank_adapter import VerificationSettings

    checks = VerificationSettings(rows=verify_rows, score_rows=score_rows, max_drop=max_rouge_drop, force=force)
    with Screen() as screen:
        done = job(bank, runs, base=base, checks=checks, overwrite=overwrite, progress=screen)
    show_shelved(done)


@app.command()
def remove(bank: Bank, names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> None:
    """Take adapters out of a bank."""
    from lora_ft.bank import remove as job

    job(bank, names)
    say(f"{bank}: without {', '.join(names)}")


@app.command(name="list")
def list_(bank: Bank) -> None:
    """List a bank's adapters: size, how they compare with PyTorch, what rounding cost."""
    from lora_ft.cli.tables import show_entries
    from lora_ft.deployment.bank_entries import entries

    show_entries(entries(bank))

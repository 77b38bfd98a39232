"""The commands of `lora-ft`, under headings. Commands import verbs when run, since `generate BUNDLE` needs no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_ft.cli import adapters, bank, bench, bundles, hub, scores, tasks
from lora_ft.cli.chat import chat
from lora_ft.cli.generate import generate
from lora_ft.cli.groups import GroupedCommands
from lora_ft.cli.machine import doctor, quickstart
from lora_ft.cli.search import search
from lora_ft.cli.serve import serve
from lora_ft.cli.smaller import distill, shrink
from lora_ft.cli.train import train
from lora_ft.core.streams import say

START, TRAIN, EVALUATE = "Start", "Train", "Evaluate"
GENERATE, DEPLOY = "Generate", "Deploy"

app = typer.Typer(
    name="lora-ft",
    cls=GroupedCommands,
    help="Small LoRA adapters for FLAN-T5: train, merge, score with ROUGE, generate, export to ONNX.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # commands inherit the names
)


def _print_version(value: bool) -> None:
    if value:
        from lora_ft import __version__

        say(f"lora-ft {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
) -> None:
    """Declare the options before a command. `lora_ft.cli.main` reads --debug."""


app.command(rich_help_panel=START)(quickstart)
app.command(rich_help_panel=START)(tasks.init)
app.command(rich_help_panel=START)(tasks.recipes)
app.command(rich_help_panel=START)(doctor)
app.command(rich_help_panel=TRAIN)(tasks.validate)
app.command(rich_help_panel=TRAIN)(tasks.sizes)
app.command(rich_help_panel=TRAIN)(train)
app.command(rich_help_panel=TRAIN)(search)
app.command(rich_help_panel=TRAIN)(shrink)
app.command(rich_help_panel=TRAIN)(distill)
app.add_typer(adapters.app, name="adapters", rich_help_panel=TRAIN)
app.command(rich_help_panel=EVALUATE)(scores.evaluate)
app.command(rich_help_panel=EVALUATE)(scores.compare)
app.add_typer(bench.app, name="bench", rich_help_panel=EVALUATE)
app.command(rich_help_panel=GENERATE)(generate)
app.command(rich_help_panel=GENERATE)(chat)
app.command(rich_help_panel=DEPLOY)(bundles.merge)
app.command(rich_help_panel=DEPLOY)(bundles.export)
app.add_typer(bank.app, name="bank", rich_help_panel=DEPLOY)
app.command(rich_help_panel=DEPLOY)(bundles.verify)
app.command(rich_help_panel=DEPLOY)(serve)
app.command(rich_help_panel=DEPLOY)(hub.push)

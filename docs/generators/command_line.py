"""Describe every command and option of `lora-ft`, from the parser itself."""

from __future__ import annotations

import inspect
from typing import Any

import typer

from lora_ft.cli.verbs import app


def page() -> str:
    """Return the page of all commands."""
    root = typer.main.get_command(app)
    parts = [
        "# Command line",
        "",
        inspect.cleandoc(root.help or ""),
        "",
        "Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted, 141 the reader of a pipe has gone.",
    ]
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        parts += ["", *_command(f"lora-ft {name}", command, level=2)]
    return "\n".join(parts) + "\n"


def _command(name: str, command: Any, *, level: int) -> list[str]:
    lines = [f"{'#' * level} {name}", "", _text(command.help or "")]
    if subcommands := getattr(command, "commands", None):
        for sub, inner in subcommands.items():
            lines += ["", *_command(f"{name} {sub}", inner, level=level + 1)]
        return lines
    context = typer.Context(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    lines += ["", "```text", f"{name} {usage}", "```"]
    for kind in ("argument", "option"):
        records = [
            parameter.get_help_record(context)
            for parameter in command.params
            if parameter.param_type_name == kind and parameter.name != "help"
        ]
        if shown := [record for record in records if record]:
            lines += ["", f"| {kind} | description |", "|---|---|"]
            lines += [f"| `{_cell(names)}` | {_cell(_text(text))} |" for names, text in shown]
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _text(text: str) -> str:
    return inspect.cleandoc(text).replace("<", "&lt;")

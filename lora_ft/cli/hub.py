"""The verb `push`, and what `--push-to-hub` of other verbs does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_ft.core.streams import say
from lora_ft.reports.screen import Screen

if TYPE_CHECKING:
    from lora_ft.push import Destination

PushTo = Annotated[
    str | None, typer.Option("--push-to-hub", metavar="REPO", help="Then upload it; HF_TOKEN must be set.")
]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private, if it is made now.")]


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run, a merged checkpoint or a bundle.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="NAMESPACE/NAME; made where there is none.")],
    private: Private = False,
    branch: Annotated[str | None, typer.Option("--branch", "--revision", help="Made where there is none.")] = None,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "",
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Of a run: also its answers, with the rows they answer.")
    ] = False,
) -> None:
    """Upload to the model hub, in one commit. The token is taken from HF_TOKEN and shown nowhere."""
    from lora_ft.push import Destination

    upload(folder, Destination(repo, _token(), private, branch, message, predictions))


def destination(repo: str | None, *, private: bool) -> Destination | None:
    """Where to push to after a job, once the hub has said that it knows the token."""
    if repo is None:
        return None
    from lora_ft.push import Destination, check

    wanted = Destination(repo, _token(), private)
    if os.environ.get("RANK", "0") == "0":
        check(wanted)
    return wanted


def upload(folder: Path, destination: Destination | None) -> None:
    """Push what a job wrote, if it is wanted, and say where it is."""
    if destination is None:
        return
    from lora_ft.push import push as job

    with Screen() as screen:
        done = job(folder, destination, progress=screen)
    say(f"{done.repo}: {done.kind}, {done.files} files, {done.bytes / 1e6:.1f} MB\n{done.url}")


def _token() -> str:
    return os.environ.get("HF_TOKEN", "").strip()

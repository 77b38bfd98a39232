"""The command `push`, and the option `--push-to-hub` of other commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_ft.cli.options import Json, Quiet
from lora_ft.cli.results import show
from lora_ft.core.distributed import rank
from lora_ft.core.streams import say
from lora_ft.reports.screen import Screen

if TYPE_CHECKING:
    from lora_ft.push import Destination, Pushed

PushTo = Annotated[str | None, typer.Option("--push-to-hub", metavar="REPO", help="Upload the result; needs HF_TOKEN.")]
Private = Annotated[bool, typer.Option("--private", help="Create the repository as private.")]


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Run, merged checkpoint or bundle.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="NAMESPACE/NAME; created if it does not exist.")],
    private: Private = False,
    branch: Annotated[
        str | None, typer.Option("--branch", "--revision", help="Branch; created if it does not exist.")
    ] = None,
    message: Annotated[str, typer.Option(help="Commit message. Default: names the upload.")] = "",
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Also upload a run's answers and their rows.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Upload a run, checkpoint or bundle to the Hub.

    The upload is one commit. The token is read from HF_TOKEN and never printed.
    """
    from lora_ft.push import Destination

    target = Destination(repo, _token(), private, branch, message, predictions)
    show(_push(folder, target, quiet=quiet), lambda pushed: say(_described(pushed)), as_json=as_json)


def destination(repo: str | None, *, private: bool) -> Destination | None:
    """Return the destination of `--push-to-hub`, after the Hub has accepted the token."""
    if repo is None:
        return None
    from lora_ft.push import Destination, check

    target = Destination(repo, _token(), private)
    if rank() == 0:
        check(target)
    return target


def upload(folder: Path, destination: Destination | None, *, as_json: bool = False, quiet: bool = False) -> None:
    """Push a folder if there is a destination, and print its address (on stderr if JSON is on stdout)."""
    if destination is None:
        return
    address = _described(_push(folder, destination, quiet=quiet))
    if as_json:
        Screen(quiet=quiet).note(address)
    else:
        say(address)


def _push(folder: Path, target: Destination, *, quiet: bool) -> Pushed:
    from lora_ft.push import push as push_folder

    with Screen(quiet=quiet) as screen:
        return push_folder(folder, target, progress=screen)


def _described(pushed: Pushed) -> str:
    return f"{pushed.repo}: {pushed.kind}, {pushed.files} files, {pushed.bytes / 1e6:.1f} MB\n{pushed.url}"


def _token() -> str:
    return os.environ.get("HF_TOKEN", "").strip()

"""The verb `push`: upload a run, a merged checkpoint or an exported model to the Hub in one commit."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ft.core.errors import HubError, LoraFtError, UsageError, first_line
from lora_ft.core.plain import plain_fields
from lora_ft.core.progress import Progress, Silent
from lora_ft.publishing.uploads import uploads

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TIMEOUT = 120.0  # seconds without an answer; the client has no limit of its own


@dataclass(frozen=True)
class Destination:
    """A repository to push to.

    Attributes:
        repo: NAMESPACE/NAME, or NAME in the namespace of the token's user.
        token: Token with write access. It is never printed.
        private: Make a new repository private.
        branch: Branch, created if it is missing. Default: main.
        message: Commit message. Default: kind and name of the upload.
        predictions: Upload a run's answers too. They contain the prompts.
    """

    repo: str
    token: str = field(repr=False)
    private: bool = False
    branch: str | None = None
    message: str = ""
    predictions: bool = False

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.repo)
        except HFValidationError as error:
            raise UsageError(f"'{self.repo}' is no name of a repository ({first_line(error)})") from error
        if not self.token:
            raise UsageError(
                "pushing to the hub needs HF_TOKEN in the environment",
                "make a token that may write at https://huggingface.co/settings/tokens and export HF_TOKEN",
            )
        # An HTTP library refuses such a header by printing it, so it must not get there.
        if not self.token.isascii() or not self.token.isprintable() or " " in self.token:
            raise UsageError(
                f"HF_TOKEN holds characters that no token has (got {len(self.token)} characters, not shown)",
                "copy the token again, without line breaks, blanks or quotes",
            )


@dataclass(frozen=True)
class Pushed:
    """The result of `push`.

    Attributes:
        kind: "run", "checkpoint", "bundle" or the name of a layout.
        repo: Full name of the repository.
        url: Address of the commit.
        files: Number of files in the commit.
        bytes: Size of the files.
    """

    kind: str
    repo: str
    url: str
    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.kind} {self.repo}: {self.files:,} files, {self.bytes / 1e6:.1f} MB, {self.url}"

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the types of JSON."""
        return plain_fields(self)


def check(destination: Destination) -> None:
    """Check the token with the Hub, before hours of work that end with a push.

    Raises:
        UsageError: Pushing is disabled (HF_HUB_OFFLINE).
        LoraFtError: the hub does not know the token, or cannot be reached.
    """
    with _explained(destination, "nothing was started"):
        _api(destination).whoami()


def push(folder: str | os.PathLike[str], destination: Destination | str, *, progress: Progress | None = None) -> Pushed:
    """Upload a folder's files, as far as `lora_ft.publishing.uploads` names them, in one commit: all of them or none.

    Nothing in `folder` is changed. The hub checks the card's metadata before anything is uploaded.

    Args:
        folder: Run, merged checkpoint or bundle.
        destination: Repository. For a name alone, the token is that of HF_TOKEN.
        progress: Receives the progress; None is silent.

    Raises:
        UsageError: the folder is nothing that can be pushed, or pushing is switched off (HF_HUB_OFFLINE).
        LoraFtError: the hub refused, or could not be reached.
    """
    from huggingface_hub import CommitOperationAdd

    progress, folder = progress or Silent(), Path(folder)
    if isinstance(destination, str):
        destination = Destination(destination, os.environ.get("HF_TOKEN", ""))
    found = uploads(folder, destination.repo, predictions=destination.predictions)
    remedy = f"nothing in {folder} was changed; repeat with `lora-ft push {folder} {destination.repo}`"
    with _explained(destination, remedy), _no_progress_bars():
        progress.stage(f"pushing {found.size / 1e6:.1f} MB to {destination.repo}")
        made = _api(destination).create_repo(destination.repo, private=destination.private or None, exist_ok=True)
        if destination.branch:
            _api(destination).create_branch(made.repo_id, branch=destination.branch, exist_ok=True)
        commit = _api(destination).create_commit(
            made.repo_id,
            [CommitOperationAdd(name, file) for name, file in found.files.items()],
            commit_message=destination.message or f"{found.kind.capitalize()} {found.name}, by lora-ft",
            revision=destination.branch,
        )
    return Pushed(found.kind, made.repo_id, str(commit.commit_url), len(found.files), found.size)


def _api(destination: Destination) -> HfApi:
    from huggingface_hub import HfApi, constants, get_session

    if constants.HF_HUB_OFFLINE:
        raise UsageError("HF_HUB_OFFLINE is set", "unset it to push to the hub")
    get_session().timeout = TIMEOUT  # of httpx; requests, with older versions of the client, has no such setting
    return HfApi(token=destination.token, library_name="lora-ft")


@contextlib.contextmanager
def _explained(destination: Destination, remedy: str) -> Iterator[None]:
    """Turn any error of the client into one line, and keep the token out of it and out of the traceback."""
    try:
        yield
    except LoraFtError:
        raise
    except Exception as error:  # the client also raises errors of its HTTP library
        # What the server said may repeat the token: then the traceback ends here.
        told = destination.token in "".join(traceback.format_exception(error))
        raise _explain(error, destination, remedy) from (None if told else error)


def _explain(error: Exception, destination: Destination, remedy: str) -> HubError:
    refused, told = _find(error, "response"), _find(error, "server_message")
    status = refused.response.status_code if refused else None
    root = list(_chain(error))[-1]
    said = told.server_message.splitlines()[0] if told and told.server_message else first_line(refused or root)
    repo = destination.repo
    if status == 401:
        what, remedy = "the hub does not accept HF_TOKEN", f"give a valid one; {remedy}"
    elif status == 403:
        what, remedy = f"HF_TOKEN may not write to {repo}", f"give one with the right to write there; {remedy}"
    elif status == 404:
        what = f"the hub has no {repo}, or does not show it to HF_TOKEN"
    elif status == 409:
        what = f"{repo} is being changed by somebody else"
    elif status == 429:
        what, remedy = "rate-limited by the Hub (HTTP 429)", f"retry in a few minutes; {remedy}"
    elif status is not None and status >= 500:
        what = f"the hub is in trouble (HTTP {status})"
    elif "Invalid metadata" in str(error):
        what, said = "the hub refuses the card", " ".join(str(error).splitlines()[1:])
    elif status is not None:
        what = f"the hub refuses (HTTP {status})"
    else:
        what = f"{repo} could not be pushed to ({type(root).__name__})"
    text = f"{what}: {said}".replace(destination.token, "(HF_TOKEN)")
    return HubError(text, remedy)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _find(error: BaseException, attribute: str) -> Any:
    """Return the first exception of the chain that has an attribute, or None."""
    return next((one for one in _chain(error) if getattr(one, attribute, None) is not None), None)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hide the progress bars of the client, which would overwrite those of the command line."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()

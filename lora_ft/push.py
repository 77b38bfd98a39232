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
from lora_ft.core.shell_command import shell_command
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
            raise UsageError(
                f"'{self.repo}' is not a valid repository name ({first_line(error)})", "pass NAME or NAMESPACE/NAME"
            ) from error
        if not self.token:
            raise UsageError(
                "HF_TOKEN is not set, which a push to the Hub needs",
                "create a token with write access at https://huggingface.co/settings/tokens and export HF_TOKEN",
            )
        # HTTP libraries print an invalid header in their error, so such a token must not reach them.
        if not self.token.isascii() or not self.token.isprintable() or " " in self.token:
            raise UsageError(
                f"HF_TOKEN contains characters that tokens never have (got {len(self.token)} characters, not shown)",
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
        LoraFtError: The Hub rejects the token, or cannot be reached.
    """
    with _client_errors(destination, "nothing was started"):
        _api(destination).whoami()


def push(folder: str | os.PathLike[str], destination: Destination | str, *, progress: Progress | None = None) -> Pushed:
    """Upload a folder's files, as listed by `lora_ft.publishing.uploads`, in one commit: either all files or none.

    Nothing in `folder` is changed. The Hub checks the card's metadata before anything is uploaded.

    Args:
        folder: Run, merged checkpoint or bundle.
        destination: Repository. If it is a name, the token is read from HF_TOKEN.
        progress: Receives the progress; None is silent.

    Raises:
        UsageError: The folder cannot be pushed, or pushing is disabled (HF_HUB_OFFLINE).
        LoraFtError: The Hub rejects the upload, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd

    progress, folder = progress or Silent(), Path(folder)
    if isinstance(destination, str):
        destination = Destination(destination, os.environ.get("HF_TOKEN", ""))
    selection = uploads(folder, destination.repo, predictions=destination.predictions)
    remedy = f"nothing in {folder} was changed; repeat with `{shell_command('push', folder, destination.repo)}`"
    with _client_errors(destination, remedy), _no_progress_bars():
        progress.stage(f"pushing {selection.size / 1e6:.1f} MB to {destination.repo}")
        repository = _api(destination).create_repo(destination.repo, private=destination.private or None, exist_ok=True)
        if destination.branch:
            _api(destination).create_branch(repository.repo_id, branch=destination.branch, exist_ok=True)
        commit = _api(destination).create_commit(
            repository.repo_id,
            [CommitOperationAdd(name, file) for name, file in selection.files.items()],
            commit_message=destination.message or f"{selection.kind.capitalize()} {selection.name}, by lora-ft",
            revision=destination.branch,
        )
    return Pushed(selection.kind, repository.repo_id, str(commit.commit_url), len(selection.files), selection.size)


def _api(destination: Destination) -> HfApi:
    from huggingface_hub import HfApi, constants, get_session

    if constants.HF_HUB_OFFLINE:
        raise UsageError("HF_HUB_OFFLINE is set", "unset it to push to the Hub")
    get_session().timeout = TIMEOUT  # only httpx has this setting; older versions of the client use requests
    return HfApi(token=destination.token, library_name="lora-ft")


@contextlib.contextmanager
def _client_errors(destination: Destination, remedy: str) -> Iterator[None]:
    """Convert any error of the client into one line, and keep the token out of the message and the traceback."""
    try:
        yield
    except LoraFtError:
        raise
    except Exception as error:  # the client also raises errors of its HTTP library
        # The server's answer may repeat the token. Then the traceback ends here.
        leaks_token = destination.token in "".join(traceback.format_exception(error))
        raise _hub_error(error, destination, remedy) from (None if leaks_token else error)


def _hub_error(error: Exception, destination: Destination, remedy: str) -> HubError:
    refused, server_error = _find(error, "response"), _find(error, "server_message")
    status = refused.response.status_code if refused else None
    root = list(_chain(error))[-1]
    detail = (
        server_error.server_message.splitlines()[0]
        if server_error and server_error.server_message
        else first_line(refused or root)
    )
    repo = destination.repo
    if status == 401:
        problem, remedy = "the Hub rejects HF_TOKEN (HTTP 401)", f"set a valid token; {remedy}"
    elif status == 403:
        problem, remedy = f"HF_TOKEN has no write access to {repo}", f"set a token with write access; {remedy}"
    elif status == 404:
        problem = f"{repo} does not exist on the Hub, or HF_TOKEN has no access to it"
    elif status == 409:
        problem = f"{repo} is being changed by another client (HTTP 409)"
    elif status == 429:
        problem, remedy = "rate-limited by the Hub (HTTP 429)", f"retry in a few minutes; {remedy}"
    elif status is not None and status >= 500:
        problem = f"the Hub failed (HTTP {status})"
    elif "Invalid metadata" in str(error):
        problem, detail = "the Hub rejects the card", " ".join(str(error).splitlines()[1:])
    elif status is not None:
        problem = f"the Hub rejects the request (HTTP {status})"
    else:
        problem = f"the push to {repo} failed ({type(root).__name__})"
    text = f"{problem}: {detail}".replace(destination.token, "(HF_TOKEN)")
    return HubError(text, remedy)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _find(error: BaseException, attribute: str) -> Any:
    """Return the first exception of the chain that has the attribute, or None."""
    return next((link for link in _chain(error) if getattr(link, attribute, None) is not None), None)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hide the client's progress bars, which would overwrite those of the command line."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()

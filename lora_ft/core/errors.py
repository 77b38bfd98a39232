"""Exceptions by exit code and by kind.

`UsageError` means that the request cannot be met (exit code 2). Any other `LoraFtError` means that a valid request
failed (exit code 1). Each kind below names the subject of the failure. Some kinds occur with both exit codes: a
`DataError` is a `UsageError` if a file of rows is missing, but not if its content is damaged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_LONGEST = 800  # characters of a message or a remedy, since a value from a file can have millions


def clipped(text: str, longest: int) -> str:
    """Shorten a text to at most `longest` characters by leaving out its middle."""
    if len(text) <= longest:
        return text
    ellipsis = f" … ({len(text):,} characters) … "
    half = (longest - len(ellipsis)) // 2
    return text[:half] + ellipsis + text[-half:]


class LoraFtError(Exception):
    """A failure that the user sees as one line: the problem and its place, then the remedy.

    `exit_code` is the exit code of the command: 1, since the request was valid but failed.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message, self.remedy = clipped(message, _LONGEST), clipped(remedy, _LONGEST)
        super().__init__(f"{self.message}; {self.remedy}" if remedy else self.message)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def sound_content(path: object, remedy: str) -> Iterator[None]:
    """Raise LoraFtError instead of the errors that reading malformed content raises.

    Args:
        path: File or folder that is read.
        remedy: Remedy for the message.
    """
    try:
        yield
    except LoraFtError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise LoraFtError(f"{path} is damaged ({type(error).__name__}: {first_line(error):.200})", remedy) from error


class UsageError(LoraFtError):
    """A request that cannot be met: a missing file, an unknown key, a value out of range (exit code 2)."""

    exit_code = 2


class TaskError(UsageError):
    """A task that is missing or invalid."""


class OutputExistsError(UsageError):
    """An output that exists already, or an unfinished one in its place."""


class DataError(LoraFtError):
    """Rows that are missing, are damaged, or do not fit their task."""


class DataUsageError(UsageError, DataError):
    """A `DataError` that is a `UsageError`."""


class BaseMismatchError(LoraFtError):
    """An adapter used on another base than the one that it was trained on."""


class BaseMismatchUsageError(UsageError, BaseMismatchError):
    """A `BaseMismatchError` that is a `UsageError`."""


class BundleError(LoraFtError):
    """A bundle that is damaged, or that this version cannot read."""


class BundleUsageError(UsageError, BundleError):
    """A `BundleError` that is a `UsageError`."""


class GateError(LoraFtError):
    """An export that was not published because it disagrees with PyTorch or loses too much accuracy."""


class LossError(LoraFtError):
    """A training loss that is not finite, or exactly 0."""


class QueueFullError(LoraFtError):
    """A request that was refused because too many wait.

    Attributes:
        retry_after: Estimated time until there is room, in seconds.
    """

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"the queue is full (got {waiting:,} requests)", f"retry in {retry_after:,.0f} s")
        self.retry_after = retry_after


class HubError(LoraFtError):
    """A request that the Hub refused, or that did not reach it."""


_USAGE: dict[type[LoraFtError], type[UsageError]] = {
    DataError: DataUsageError,
    BaseMismatchError: BaseMismatchUsageError,
    BundleError: BundleUsageError,
}


@contextlib.contextmanager
def raised_as(kind: type[LoraFtError]) -> Iterator[None]:
    """Raise a plain LoraFtError or UsageError as a more specific kind, with the same exit code.

    Args:
        kind: `TaskError`, `DataError`, `BaseMismatchError` or `BundleError`.
    """
    try:
        yield
    except LoraFtError as error:
        usage = _USAGE.get(kind, kind) if type(error) is UsageError else kind
        if type(error) not in (LoraFtError, UsageError) or usage.exit_code != error.exit_code:
            raise  # it is specific already, or `kind` has no class with this exit code
        raise usage(error.message, error.remedy) from error

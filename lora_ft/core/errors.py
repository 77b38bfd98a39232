"""The two ways a job can fail, the exit code of each, and the kinds that a caller can catch.

`UsageError` means that the request cannot be met (exit code 2); any other `LoraFtError` means that a valid request
failed (exit code 1). The kinds below say what the failure is about. Some occur in both ways: a `DataError` is a
`UsageError` where a file of rows is missing, and none where its content is damaged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_LONGEST = 800  # characters of a message and of a remedy: a value out of a file can have millions


def clipped(text: str, longest: int) -> str:
    """Return a text of at most `longest` characters, the middle of a longer one left out."""
    if len(text) <= longest:
        return text
    left = f" … ({len(text):,} characters) … "
    half = (longest - len(left)) // 2
    return text[:half] + left + text[-half:]


class LoraFtError(Exception):
    """A failure to tell the user about in one line: what went wrong and where, then what to do about it.

    `exit_code` is what a command ends with: 1, the work was asked for rightly and failed.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message, self.remedy = clipped(message, _LONGEST), clipped(remedy, _LONGEST)
        super().__init__(f"{self.message}; {self.remedy}" if remedy else self.message)


def first_line(error: BaseException) -> str:
    """What another library's exception says, cut to a line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def sound_content(path: object, remedy: str) -> Iterator[None]:
    """Raise LoraFtError for what a reader of a file's content raises where that has another shape than it expects.

    Args:
        path: The file or folder.
        remedy: What to do about it.
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
    """Rows that are missing, damaged, or do not fit their task."""


class DataUsageError(UsageError, DataError):
    """A `DataError` that is a `UsageError`."""


class BaseMismatchError(LoraFtError):
    """An adapter on another base than the one it was trained on."""


class BaseMismatchUsageError(UsageError, BaseMismatchError):
    """A `BaseMismatchError` that is a `UsageError`."""


class BundleError(LoraFtError):
    """A bundle that is damaged, or that this version cannot read."""


class BundleUsageError(UsageError, BundleError):
    """A `BundleError` that is a `UsageError`."""


class GateError(LoraFtError):
    """An export that was not published: it answers unlike PyTorch, or its precision costs too much."""


class HubError(LoraFtError):
    """A request that the Hub refused, or that did not reach it."""


_USAGE: dict[type[LoraFtError], type[UsageError]] = {
    DataError: DataUsageError,
    BaseMismatchError: BaseMismatchUsageError,
    BundleError: BundleUsageError,
}


@contextlib.contextmanager
def raised_as(kind: type[LoraFtError]) -> Iterator[None]:
    """Raise errors of either class as a kind of it; the exit code stays the same.

    Args:
        kind: `TaskError`, `DataError`, `BaseMismatchError` or `BundleError`.
    """
    try:
        yield
    except LoraFtError as error:
        usage = _USAGE.get(kind, kind) if type(error) is UsageError else kind
        if type(error) not in (LoraFtError, UsageError) or usage.exit_code != error.exit_code:
            raise  # it is of a kind already, or `kind` does not exist with its exit code
        raise usage(error.message, error.remedy) from error

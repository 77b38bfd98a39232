"""The two ways a job can fail, and the exit code of each."""

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
    """What was asked for cannot be done: a missing file, an unknown key, a value out of range (exit code 2)."""

    exit_code = 2

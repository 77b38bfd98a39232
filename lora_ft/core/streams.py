"""Standard streams: output in any encoding without control characters, and input line by line."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from lora_ft.core.errors import UsageError
from lora_ft.core.printable import printable

_ASCII = str.maketrans({"…": "...", "–": "-", "—": "-", "→": "->", "·": "*", "’": "'", "“": '"', "”": '"'})


def say(text: str, *, end: str = "\n", flush: bool = False) -> None:
    """Print a line on stdout, with control characters shown as their codes."""
    print(printable(text), end=end, flush=flush)


def answer(text: str, *, end: str = "\n") -> None:
    """Print a model's answer: unchanged to a file or pipe, without control characters on a terminal."""
    print(printable(text) if is_terminal(sys.stdout) else text, end=end, flush=True)


def is_terminal(stream: TextIO | None) -> bool:
    """Return True if `stream` is open and a terminal."""
    return stream is not None and not stream.closed and stream.isatty()


def stdin_lines() -> Iterator[str]:
    """Yield the lines of stdin as they arrive, without line ends.

    Raises:
        UsageError: The stream is closed, or a line is not text in its encoding.
    """
    stream = sys.stdin
    if stream is None or stream.closed:
        raise UsageError("stdin is closed", "give a text or --input FILE, or open it with < FILE")
    number = 0
    while True:
        try:
            line = stream.readline()
        except UnicodeError as error:
            raise _not_text(number + 1, stream) from error
        if not line:
            return
        number += 1
        if number == 1:
            line = line.removeprefix("\ufeff")  # a byte order mark, as editors on Windows write it
        if any("\ud800" <= character <= "\udfff" for character in line):
            raise _not_text(number, stream)
        yield line.removesuffix("\n")


def prepare_streams() -> None:
    """Let stdout and stderr write any text, whatever the terminal's encoding.

    A character missing from the encoding becomes a similar ASCII form if there is one, else its code. Undecodable bytes
    of stdin become lone surrogates, so that `stdin_lines` can name their line.
    """
    codecs.register_error("lora-ft", _replace)
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="lora-ft")
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="surrogateescape")


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise UsageError if Python read UTF-8 arguments as ASCII, as it does with PYTHONUTF8=0 in the locale C.

    Each byte of such a character is a lone surrogate then: file names are unknown to libraries, and the text of a
    prompt would be answered as U+FFFD. Arguments that are not UTF-8, such as old file names, are left as they are.
    """
    for argument in arguments:
        try:
            text = argument.encode("utf-8", "surrogateescape").decode() if _is_escaped(argument) else ""
        except UnicodeError:
            continue
        if text:
            raise UsageError(
                f"the argument {text!r} is UTF-8, but Python reads arguments as {sys.getfilesystemencoding()}",
                "unset PYTHONUTF8, or set LC_ALL=C.UTF-8",
            )


def _is_escaped(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


def _not_text(number: int, stream: TextIO) -> UsageError:
    return UsageError(f"line {number} of stdin is not {stream.encoding} text", "convert it, or give --input FILE")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end].translate(_ASCII)
    return characters.encode("ascii", "backslashreplace").decode("ascii"), error.end

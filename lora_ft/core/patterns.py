"""Regular expressions that came with a file, tried in a process of their own first: some never end, or take all memory.

peft matches `target_modules`, `rank_pattern` and their like with Python's `re`, which cannot be interrupted. So does
jsonschema with the patterns of a schema. Whatever a child process matches in time with the same texts (the names of a
model's layers, the texts of answers), they match in time as well.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence

from lora_ft.core.errors import UsageError

_SECONDS = 5
_SECONDS_OF_A_SEARCH = 1e-4
_MEMORY = 1 << 30  # bytes
_REPEATS = re.compile(r"[*+{]")
_CHILD = f"""
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
except (ImportError, ValueError):
    pass
way, patterns, texts = json.load(sys.stdin)
for pattern in patterns:
    find = getattr(re.compile(pattern), way)
    for text in texts:
        find(text)
"""


def check_patterns(where: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise UsageError for a pattern that is no regular expression, or takes too long on some names.

    Args:
        where: file and key that the patterns are from, for the message.
        patterns: regular expressions.
        names: of the model's layers.
    """
    dangerous = []
    for pattern in patterns:
        try:
            if _REPEATS.search(pattern):
                dangerous.append(pattern)
            else:
                re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise _refusal(where, pattern, f"is no regular expression ({error})") from error
    names = list(names)
    if _ends("match", [form for pattern in dangerous for form in _forms(pattern)], names):
        return
    for pattern in dangerous:
        if not _ends("match", _forms(pattern), names):
            raise _refusal(where, pattern, f"cannot be matched within {_SECONDS} s and 1 GB")


def check_searches(where: str, patterns: Sequence[str], texts: Sequence[str]) -> None:
    """Raise UsageError for a pattern that takes too long to be found, or not, in some texts.

    Args:
        where: File that the patterns are from, for the message.
        patterns: Regular expressions; those that are none are passed over.
        texts: Texts that the patterns will be looked for in.
    """
    dangerous = [pattern for pattern in patterns if _REPEATS.search(pattern) and _is_sound(pattern)]
    seconds = _SECONDS + len(dangerous) * len(texts) * _SECONDS_OF_A_SEARCH
    if _ends("search", dangerous, texts, seconds):
        return
    for pattern in dangerous:
        if not _ends("search", [pattern], texts, seconds):
            fault = f"cannot be matched within {seconds:.0f} s and 1 GB"
            raise _refusal(where, pattern, fault, "write it without repeats inside repeats, or as maxLength and enum")


def _forms(pattern: str) -> list[str]:
    """Return the two forms in which peft matches a pattern."""
    return [pattern, rf"(.*\.)?({pattern})$"]


def _is_sound(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _ends(way: str, patterns: Sequence[str], texts: Sequence[str], seconds: float = _SECONDS) -> bool:
    """Return whether matching all patterns with all texts, in the way of `re` that is named, ends well."""
    if not patterns or not texts:
        return True
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps([way, patterns, texts]),
            text=True,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _refusal(where: str, pattern: str, fault: str, remedy: str = "name the layers instead") -> UsageError:
    shown = pattern if len(pattern) <= 60 else f"{pattern[:60]}…"
    return UsageError(f"{where}: the pattern {shown!r} {fault}", remedy)

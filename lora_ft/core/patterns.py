"""Trial runs of untrusted regular expressions in a child process, since some never end or exhaust the memory.

peft matches `target_modules`, `rank_pattern` and similar keys with Python's `re`, which cannot be interrupted.
jsonschema does the same with the patterns of a schema. The child process tries the same patterns on the same texts:
names of a model's layers, or texts of answers. If it ends in time, so do peft and jsonschema.
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
_MEMORY = 1 << 30  # bytes of the child process
_REPEATS = re.compile(r"[*+{]")
_CHILD = f"""
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
except (ImportError, ValueError):
    pass
method, patterns, texts = json.load(sys.stdin)
for pattern in patterns:
    find = getattr(re.compile(pattern), method)
    for text in texts:
        find(text)
"""


def check_patterns(where: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise UsageError if a pattern is not a regular expression or takes too long on some names.

    Args:
        where: File and key of the patterns, for errors.
        patterns: Regular expressions.
        names: Names of the model's layers.
    """
    dangerous = []
    for pattern in patterns:
        try:
            if _REPEATS.search(pattern):
                dangerous.append(pattern)
            else:
                re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise _refusal(where, pattern, f"is not a regular expression ({error})") from error
    names = list(names)
    if _ends("match", [form for pattern in dangerous for form in _forms(pattern)], names):
        return
    for pattern in dangerous:
        if not _ends("match", _forms(pattern), names):
            raise _refusal(where, pattern, f"cannot be matched within {_SECONDS} s and 1 GB")


def check_searches(where: str, patterns: Sequence[str], texts: Sequence[str]) -> None:
    """Raise UsageError if searching some texts for a pattern takes too long.

    Args:
        where: File of the patterns, for errors.
        patterns: Regular expressions; malformed ones are skipped.
        texts: Texts to search.
    """
    dangerous = [pattern for pattern in patterns if _REPEATS.search(pattern) and _is_sound(pattern)]
    seconds = _SECONDS + len(dangerous) * len(texts) * _SECONDS_OF_A_SEARCH
    if _ends("search", dangerous, texts, seconds):
        return
    for pattern in dangerous:
        if not _ends("search", [pattern], texts, seconds):
            problem = f"cannot be matched within {seconds:.0f} s and 1 GB"
            raise _refusal(where, pattern, problem, "write it without nested repeats, or as maxLength and enum")


def _forms(pattern: str) -> list[str]:
    """Return the two forms in which peft matches a pattern."""
    return [pattern, rf"(.*\.)?({pattern})$"]


def _is_sound(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _ends(method: str, patterns: Sequence[str], texts: Sequence[str], seconds: float = _SECONDS) -> bool:
    """Return True if matching all patterns with all texts ends in time; `method` is a method of `re.Pattern`."""
    if not patterns or not texts:
        return True
    try:
        process = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps([method, patterns, texts]),
            text=True,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return process.returncode == 0


def _refusal(where: str, pattern: str, problem: str, remedy: str = "name the layers instead") -> UsageError:
    shown = pattern if len(pattern) <= 60 else f"{pattern[:60]}…"
    return UsageError(f"{where}: the pattern {shown!r} {problem}", remedy)

"""Regular expressions that came with a file, tried in a process of their own first: some never end, or take all memory.

peft matches `target_modules`, `rank_pattern` and their like with Python's `re`, which cannot be interrupted. The names
of a model's layers are few and short, so whatever a child process matches in time, peft matches in time as well.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable

from export.errors import UsageError

_SECONDS = 5
_MEMORY = 1 << 30  # bytes
_REPEATS = re.compile(r"[*+{]")
_CHILD = f"""
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
except (ImportError, ValueError):
    pass
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for compiled in (re.compile(pattern), re.compile(rf"(.*\\.)?({{pattern}})$")):
        for name in names:
            compiled.match(name)
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
    if not dangerous or _ends(dangerous, list(names)):
        return
    for pattern in dangerous:
        if not _ends([pattern], list(names)):
            raise _refusal(where, pattern, f"cannot be matched within {_SECONDS} s and 1 GB")


def _ends(patterns: list[str], names: list[str]) -> bool:
    """Return whether matching all patterns with all names ends well."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD], input=json.dumps([patterns, names]), text=True,
            capture_output=True, timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _refusal(where: str, pattern: str, fault: str) -> UsageError:
    shown = pattern if len(pattern) <= 60 else f"{pattern[:60]}…"
    return UsageError(f"{where}: the pattern {shown!r} {fault}", "name the layers instead")

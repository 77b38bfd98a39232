"""Results of verbs on stdout: as a table for a person, or as JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

from lora_ft.core.plain import plain
from lora_ft.core.streams import say

Result = TypeVar("Result")


def show(result: Result, draw: Callable[[Result], object], *, as_json: bool) -> None:
    """Print a result.

    Args:
        result: Result of a verb.
        draw: Function that prints it as a table.
        as_json: Print JSON instead.
    """
    if as_json:
        show_json(result)
    else:
        draw(result)


def show_json(result: object) -> None:
    """Print a result as JSON."""
    say(json.dumps(plain(result), indent=2, ensure_ascii=False))

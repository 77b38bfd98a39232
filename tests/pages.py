"""Commands and code of the README and the documentation, and a way to run them on a tiny model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [Path("README.md"), *sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))]

# Options that make a command fit the tiny model, by its verb. They follow the command as it is written.
SMALLER = {
    "train": (
        "--set base={base} --set lengths.source=64 --set lengths.target=24 --set lengths.long_targets=cut "
        "--set codec=none "
        "--set train.max_steps=2 --set train.eval_every=2 --set train.precision=fp32 --set train.compile=off "
        "--set data.limit.train=16 --set data.limit.validation=4 --set data.limit.test=4"
    ),
    "validate": "--set base={base} --set lengths.long_targets=cut",
    "evaluate": "--limit 4",
    "export": "--verify-rows 2 --score-rows 2 --precision fp32",
    "verify": "--rows 2",
    "bank add": "--verify-rows 2 --score-rows 2",
}


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str, *languages: str) -> list[list[str]]:
    """Return the words of every `lora-ft` command in a page, without comments."""
    return [words for language in languages for block in blocks(text, language) for words in _commands(block)]


def _commands(block: str) -> Iterator[list[str]]:
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if "lora-ft" in words:
            yield words[words.index("lora-ft") + 1 :]


def smaller(words: list[str], base: Path) -> list[str]:
    """Return a command with options that make it fit the tiny model at `base`."""
    verb = next((verb for verb in SMALLER if words[: len(verb.split())] == verb.split()), "")
    return [*words, *SMALLER.get(verb, "").format(base=base).split()]

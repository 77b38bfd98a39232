"""A record of the rows that a run began with, so that it never resumes with other rows.

The record keeps a short digest of each row instead of the row. Digests suffice to count rows that are new, removed or
in another split.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.core.errors import LoraFtError
from lora_ft.data.splits import Example, Splits
from lora_ft.tasks.schema import SPLITS

_DIGITS = 16  # hex digits, 64 bits: the probability of any collision among 10 million rows is 3 in a million
# Splits whose order affects training: it decides which rows share a batch, and the order in which sums are rounded.
_ORDERED = ("train", "validation")


@dataclass(frozen=True)
class RowRecord:
    """The digests of all rows by split, in the order of the rows."""

    splits: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, splits: Splits) -> RowRecord:
        """Return the record of a task's rows."""
        return cls({name: [_digest(example) for example in splits[name]] for name in SPLITS})

    @classmethod
    def read(cls, content: Mapping[str, Any], where: Path) -> RowRecord:
        """Return the record that `as_dict` wrote.

        Raises:
            LoraFtError: The record is damaged.
        """
        try:
            splits = {}
            for name in SPLITS:
                text, count = str(content[name]["rows"]), int(content[name]["count"])
                splits[name] = [text[at : at + _DIGITS] for at in range(0, len(text), _DIGITS)]
                if len(text) != count * _DIGITS:
                    raise ValueError(f"{name} has {count} rows and {len(text)} digits")
        except (LookupError, TypeError, ValueError) as error:
            raise LoraFtError(f"{where} is damaged ({error})", "train again with --overwrite") from error
        return cls(splits)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {name: {"count": len(rows), "rows": "".join(rows)} for name, rows in self.splits.items()}

    @property
    def digest(self) -> str:
        """Digest of all splits."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:_DIGITS]

    def changes(self, now: RowRecord) -> list[str]:
        """Return a phrase for each difference between this record and `now`; none if a run may resume."""
        changes = []
        for name in SPLITS:
            before, after = self.splits[name], now.splits[name]
            replaced = sum((Counter(after) - Counter(before)).values())
            if len(before) != len(after):
                changes.append(f"{name}: {_rows(len(after))}, was {len(before):,}")
            elif replaced:
                changes.append(f"{name}: {replaced:,} of {_rows(len(after))} are different")
            elif name in _ORDERED and list(before) != list(after):
                changes.append(f"{name}: the same rows in another order")
        trained = set(self.splits["train"])
        for name in ("validation", "test"):
            moved = sum(row in trained for row in set(now.splits[name]) - set(self.splits[name]))
            if moved == 1:
                changes.append(f"1 row that was trained on is now a {name} row")
            elif moved:
                changes.append(f"{moved:,} rows that were trained on are now {name} rows")
        return changes


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _digest(example: Example) -> str:
    text = json.dumps([example.prompt, example.target, example.references], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]

"""Models of what is asked and found: they take no unknown keys, and what is written is read back by its version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import write_text

VERSION = 1  # of the files that are written


class Strict(BaseModel):
    """A model without unknown keys that does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Record(Strict):
    """A model that is a file of its own; it has a field `version`."""

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """One from its file.

        Raises:
            UsageError: there is no such file.
            LoraFtError: it is none, or of another version.
        """
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}", "give the JSON file that `lora-ft bench` wrote") from error
        except ValueError as error:
            raise LoraFtError(f"{path} is no JSON ({error})") from error
        version = content.get("version") if isinstance(content, dict) else None
        if version != VERSION:
            raise LoraFtError(f"{path} is a report of version {version!r}", f"this lora-ft reads version {VERSION}")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise LoraFtError(f"{path}: {first_fault(error)}") from error


def first_fault(error: ValidationError) -> str:
    """The key, its value and what is wrong with it, of the first of several."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))} = {first['input']!r:.60}: {first['msg']}"

"""Base classes of suites and reports, which refuse unknown keys and store the version of their format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import write_text

VERSION = 1  # of written files


class Strict(BaseModel):
    """An immutable model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Record(Strict):
    """A model with its own file; subclasses have a field `version`."""

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the record in a file.

        Raises:
            UsageError: The file cannot be read.
            LoraFtError: The file is damaged or has another version.
        """
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}", "pass a JSON file written by `lora-ft bench`") from error
        except ValueError as error:
            raise LoraFtError(f"{path} is not valid JSON ({error})") from error
        version = content.get("version") if isinstance(content, dict) else None
        if version != VERSION:
            raise LoraFtError(
                f"the format of {path} is not supported (got version {version!r}, supported: {VERSION})",
                "repeat the benchmark",
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise LoraFtError(f"{path}: {first_error(error)}") from error


def first_error(error: ValidationError) -> str:
    """Return the key, the value and the message of the first error."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))} = {first['input']!r:.60}: {first['msg']}"

"""Conversion of the results of verbs to JSON types."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """Convert a value to JSON types: results by their `as_dict`, else by their public fields."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | Set):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else _plain_object(value)


def _plain_object(value: Any) -> Any:
    """Convert an object to JSON types; return its folder or text if it has no fields."""
    if callable(getattr(value, "as_dict", None)):
        return plain(value.as_dict())
    if callable(getattr(value, "model_dump", None)):  # pydantic
        return value.model_dump(mode="json")
    if callable(getattr(value, "tolist", None)):  # numpy
        return plain(value.tolist())
    if is_dataclass(value):
        return plain_fields(value)
    return str(getattr(value, "folder", value))


def plain_fields(value: Any) -> dict[str, Any]:
    """Return the public fields of a dataclass, converted to JSON types."""
    public = (field.name for field in fields(value) if field.repr and not field.name.startswith("_"))
    return {name: plain(getattr(value, name)) for name in public}

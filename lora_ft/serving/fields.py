"""Fields of a JSON body: one table serves the parser, the errors and the OpenAPI document.

A body is an object whose keys are all known. Each field has a kind, which checks the value and describes it as a JSON
schema. null is the same as leaving a field out, whatever its name, since some clients send null for all of OpenAI's
fields. Errors name the field by its path, such as `messages[2].content`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from lora_ft.serving.errors import RequestError

_SHOWN = 80  # characters of a value in an error


class Kind(Protocol):
    """Kind of a value."""

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the values."""

    def read(self, value: Any, path: str) -> Any:
        """Return the value.

        Raises:
            RequestError: The value has another type, or is out of range.
        """


@dataclass(frozen=True)
class Text:
    """A string of at most `longest` characters, or of any length if None."""

    longest: int | None = None

    def schema(self) -> dict[str, Any]:
        return {"type": "string"} | ({} if self.longest is None else {"maxLength": self.longest})

    def read(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise wrong(path, value, "a string")
        if self.longest is not None and len(value) > self.longest:
            raise RequestError(
                f"{path} is too long (got {len(value):,} characters, at most {self.longest})", param=path
            )
        return value


@dataclass(frozen=True)
class Flag:
    """true or false."""

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}

    def read(self, value: Any, path: str) -> bool:
        if not isinstance(value, bool):
            raise wrong(path, value, "true or false")
        return value


@dataclass(frozen=True)
class Number:
    """A number from `least` to `most`."""

    least: float
    most: float

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.least, "maximum": self.most}

    def read(self, value: Any, path: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise wrong(path, value, "a number")
        if not self.least <= value <= self.most:
            raise RequestError(f"{path} is out of range (got {value:.6g}, {self.least:g} to {self.most:g})", param=path)
        return value


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`."""

    least: int
    most: int

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}

    def read(self, value: Any, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(path, value, "a whole number")
        if not self.least <= value <= self.most:
            raise RequestError(f"{path} is out of range (got {shown(value)}, {self.least} to {self.most})", param=path)
        return value


@dataclass(frozen=True)
class Choice:
    """A string among fixed choices."""

    values: tuple[str, ...]

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.values)}

    def read(self, value: Any, path: str) -> str:
        if value not in self.values:
            raise wrong(path, value, f"one of {', '.join(self.values)}")
        return str(value)


@dataclass(frozen=True)
class ListOf:
    """A list of `least` to `most` values of a kind."""

    kind: Kind
    least: int = 0
    most: int | None = None

    def schema(self) -> dict[str, Any]:
        most = {} if self.most is None else {"maxItems": self.most}
        return {"type": "array", "items": self.kind.schema(), "minItems": self.least, **most}

    def read(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list):
            raise wrong(path, value, "a list")
        if len(value) < self.least or (self.most is not None and len(value) > self.most):
            most = "" if self.most is None else f", at most {self.most:,}"
            raise RequestError(f"{path} has {len(value):,} items (at least {self.least}{most})", param=path)
        return [self.kind.read(item, f"{path}[{i}]") for i, item in enumerate(value)]


@dataclass(frozen=True)
class SingleOr:
    """A value of a kind, or a list of such values; read as a list."""

    several: ListOf

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [self.several.kind.schema(), self.several.schema()]}

    def read(self, value: Any, path: str) -> list[Any]:
        return self.several.read(value, path) if isinstance(value, list) else [self.several.kind.read(value, path)]


@dataclass(frozen=True)
class Only:
    """A field of OpenAI's that has no effect here. Only its neutral values are accepted.

    Attributes:
        neutral: Values that ask for nothing.
        remedy: Alternative for the user.
    """

    neutral: tuple[Any, ...]
    remedy: str = "leave it out"

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.neutral)}

    def read(self, value: Any, path: str) -> Any:
        if not any(_same(value, neutral) for neutral in self.neutral):
            raise RequestError(
                f"{path} is not supported (got {shown(value)})", self.remedy, param=path, code="unsupported_value"
            )
        return value


@dataclass(frozen=True)
class Field:
    """One key of an object.

    Attributes:
        name: Key.
        kind: Kind of its value.
        about: Description for the OpenAPI document.
        required: True if the key must be present.
    """

    name: str
    kind: Kind
    about: str
    required: bool = False


class Schema:
    """A JSON schema, which generation checks."""

    def schema(self) -> dict[str, Any]:
        return {"type": "object"}

    def read(self, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise wrong(path, value, "a JSON schema")
        return value


@dataclass(frozen=True)
class Fields:
    """An object with known keys only.

    Attributes:
        fields: Its keys.
        unknown: Remedy for a key that is not among them.
    """

    fields: tuple[Field, ...]
    unknown: str = "remove it"

    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {field.name: {**field.kind.schema(), "description": field.about} for field in self.fields},
            "required": [field.name for field in self.fields if field.required],
            "additionalProperties": False,
        }

    def read(self, value: Any, path: str = "") -> dict[str, Any]:
        """Return the fields that are present and not null."""
        if not isinstance(value, dict):
            raise wrong(path or "the body", value, "a JSON object", param=path or None)
        fields = {field.name: field for field in self.fields}
        sent = {name: content for name, content in value.items() if content is not None}
        for name in sent:
            if name not in fields:
                raise RequestError(
                    f"{_clip(_joined(path, name))} is not a field of this request",
                    self.unknown,
                    param=_clip(_joined(path, name)),
                    code="unknown_field",
                )
        values = {name: fields[name].kind.read(content, _joined(path, name)) for name, content in sent.items()}
        for field in self.fields:
            if field.required and field.name not in values:
                place = _joined(path, field.name)
                raise RequestError(f"{place} is missing", f"add it: {field.about}", param=place, code="missing_field")
        return values


def wrong(path: str, value: Any, expected: str, param: str | None = "") -> RequestError:
    """Return the error about a value of another type."""
    return RequestError(
        f"{path} is not {expected} (got {shown(value)})",
        param=path if param == "" else param,
        code="invalid_type",
    )


def shown(value: Any) -> str:
    """Return a value for an error: JSON's name of a constant, or Python's form of at most 80 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return f"a list of {len(value)}" if isinstance(value, list) else "an object"
    return _clip(repr(value))


def _same(value: Any, constant: Any) -> bool:
    """Return True for equal JSON values; true is not 1."""
    return isinstance(value, bool) == isinstance(constant, bool) and value == constant


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _clip(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"

"""Scores of JSON answers: valid under a schema, and equal in value to a reference."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_ft.core.errors import UsageError, first_line
from lora_ft.core.files import read_json
from lora_ft.core.patterns import check_searches
from lora_ft.evaluation.metrics.statistics import Scored
from lora_ft.tasks.evaluate import FHIR_R4

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate

VALID, SAME_VALUE = "valid", "same_value"
_FHIR_SCHEMA = Path(__file__).parents[2] / "schemas" / "fhir-r4.schema.json.gz"

# A pattern with catastrophic backtracking shows it on a long run of one of its letters, followed by another letter.
_PROBE = 40

Check = Callable[[Any], bool]


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Return the shares of answers that are valid under `evaluate.json_schema`, and that equal a reference in value."""
    scores = structured(answers, references, settings.json_schema)
    how = f"valid by {settings.json_schema or 'JSON'}"
    return {name: Scored.mean(rows, how) for name, rows in scores.items()}


def require(settings: Evaluate) -> None:
    """Raise UsageError if the schema is missing or invalid, or if a package that checks it is not installed."""
    if not settings.json_schema:
        return
    _require_quick(settings.json_schema, [])
    try:
        checker(settings.json_schema)({"resourceType": "Patient"})
    except ModuleNotFoundError as error:
        raise UsageError(
            f"evaluate.json_schema needs the package {error.name}, which is not installed",
            "pip install 'lora-ft[structured]', or remove the key",
        ) from error


def structured(
    answers: Sequence[str], references: Sequence[Sequence[str]], schema: str | None = None
) -> dict[str, np.ndarray]:
    """Return scores [rows], 0 or 100: VALID if the schema accepts the answer, SAME_VALUE if it equals a reference.

    Args:
        answers: Decoded answers.
        references: [rows] acceptable JSON texts.
        schema: Schema, as for `checker`; None accepts all JSON.
    """
    accepts: Check = checker(schema) if schema else lambda value: True
    values = [_parsed(answer) for answer in answers]
    if schema:
        _require_quick(schema, values)
    valid = [bool(value) and accepts(value[0]) for value in values]
    acceptable = [{_spelling(_parsed(text)) for text in texts} - {""} for texts in references]
    same = [_spelling(value) in spellings for value, spellings in zip(values, acceptable, strict=True)]
    return {VALID: 100.0 * np.array(valid), SAME_VALUE: 100.0 * np.array(same)}


def checker(schema: str) -> Check:
    """Return a function that checks a JSON value.

    Args:
        schema: Path of a JSON schema file, or `fhir-r4`. The latter combines HL7's published schema of R4 with the
            models of fhir.resources, which check required and mutually exclusive values. The models are for R4B, whose
            clinical resources equal those of R4.

    Raises:
        UsageError: The file does not exist, or is not a JSON schema.
    """
    if schema == FHIR_R4:
        return _is_fhir
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    if not Path(schema).is_file():
        raise UsageError(f"the schema {schema} does not exist", f"name a JSON schema file, or {FHIR_R4}")
    content = read_json(Path(schema))
    kind = validator_for(content)
    try:
        kind.check_schema(content)
    except SchemaError as error:
        raise UsageError(f"{schema} is not a valid JSON schema ({error.message})") from error
    validator = kind(content, registry=Registry())  # the default registry would fetch $ref over the network

    def accepts(value: Any) -> bool:
        try:
            return bool(validator.is_valid(value))
        except Exception as error:  # a $ref to another file, a cyclic $ref, or an invalid pattern
            raise UsageError(
                f"{schema} cannot be used as a JSON schema ({first_line(error)})", "keep the whole schema in one file"
            ) from error

    return accepts


def _require_quick(schema: str, values: Sequence[Any]) -> None:
    """Raise UsageError if a pattern of a schema file is too slow on the texts of `values` or on probes."""
    if schema == FHIR_R4 or not Path(schema).is_file():
        return
    patterns = sorted(set(_patterns(read_json(Path(schema)))))
    letters = sorted({letter for pattern in patterns for letter in (*pattern, "a", "A", "0", " ")})
    probes = [_PROBE * letter + "\n!" for letter in letters]
    check_searches(schema, patterns, [*probes, *sorted({text for value in values for text in _texts(value)})])


def _patterns(schema: Any) -> Iterator[str]:
    """Yield the regular expressions of a schema."""
    if isinstance(schema, dict):
        if isinstance(pattern := schema.get("pattern"), str):
            yield pattern
        if isinstance(names := schema.get("patternProperties"), dict) and names:
            yield from names
            yield "|".join(names)  # as jsonschema searches for additional properties
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _patterns(part)


def _texts(value: Any) -> Iterator[str]:
    """Yield the strings of a JSON value, including property names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _is_fhir(value: Any) -> bool:
    from fhir.resources.R4B import get_fhir_model_class

    name = value.get("resourceType") if isinstance(value, dict) else None
    is_resource = isinstance(name, str) and name in _fhir_schema()["discriminator"]["mapping"]
    if not is_resource or not _fhir_validator(name).is_valid(value):
        return False
    try:
        get_fhir_model_class(name).model_validate(value)
    except ValueError:  # includes pydantic's error
        return False
    return True


@functools.cache
def _fhir_schema() -> dict[str, Any]:
    """Return HL7's schema plus rules that FHIR states in prose: no object is a string, no object or array is empty."""
    schema: dict[str, Any] = json.loads(gzip.decompress(_FHIR_SCHEMA.read_bytes()))
    for definition in schema["definitions"].values():
        if "properties" in definition:
            definition |= {"type": "object", "minProperties": 1}
            for value in definition["properties"].values():
                if value.get("type") == "array":
                    value["minItems"] = 1
    return schema


@functools.cache
def _fhir_validator(name: str) -> Any:
    """Return the validator of one resource type. The whole schema would try all 146 types in turn."""
    from jsonschema import Draft6Validator

    schema = _fhir_schema()
    return Draft6Validator({"$ref": schema["discriminator"]["mapping"][name], "definitions": schema["definitions"]})


def _parsed(text: str) -> tuple[Any, ...]:
    """Return the value of a JSON text in a 1-tuple, or an empty tuple if the text is not JSON."""
    try:
        return (json.loads(text, parse_constant=_refuse),)
    except (ValueError, RecursionError):
        return ()


def _spelling(value: tuple[Any, ...]) -> str:
    """Return the same text for all spellings of a JSON value (1 equals 1.0 but not true), or "" for no value."""
    text = json.dumps(value, sort_keys=True)
    return json.dumps(json.loads(text, parse_int=float), sort_keys=True) if value else ""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")

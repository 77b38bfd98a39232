"""JSON answers: validity under FHIR or a schema file, and equality of values with references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import UsageError
from lora_ft.evaluation.metrics.structured import checker, require, structured
from lora_ft.tasks.evaluate import Evaluate

OBSERVATION: dict[str, Any] = {
    "resourceType": "Observation",
    "status": "final",
    "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
    "subject": {"display": "Ida Weiss"},
    "effectiveDateTime": "2024-03-05",
    "valueQuantity": {"value": 72.5, "comparator": "<", "unit": "beats/minute"},
}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in OBSERVATION.items() if name != key}


def test_a_fhir_resource_is_valid() -> None:
    assert checker("fhir-r4")(OBSERVATION)


@pytest.mark.parametrize(
    "value",
    [
        OBSERVATION | {"status": "finished"},
        OBSERVATION | {"bloodPressure": 1},
        OBSERVATION | {"effectiveDateTime": "yesterday"},
        OBSERVATION | {"effectiveDateTime": "2024-13-05"},
        OBSERVATION | {"valueString": "72"},
        OBSERVATION | {"valueQuantity": {"value": "72"}},
        OBSERVATION | {"subject": '{"display": "Ida Weiss"}'},
        OBSERVATION | {"subject": {}},
        OBSERVATION | {"code": {"coding": []}},
        OBSERVATION | {"resourceType": "Measurement"},
        OBSERVATION | {"resourceType": ["Observation"]},
        OBSERVATION | {"resourceType": "Patient"},
        without("status"),
        without("code"),
        without("resourceType"),
        {},
        [OBSERVATION],
        "Observation",
        None,
    ],
    ids=str,
)
def test_other_values_are_not_fhir_resources(value: Any) -> None:
    assert not checker("fhir-r4")(value)


def test_a_schema_file(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"type": "object", "required": ["a"]}), encoding="utf-8")
    assert checker(str(path))({"a": 1}) and not checker(str(path))({"b": 1})


def test_a_missing_or_invalid_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    with pytest.raises(
        UsageError, match=r"the schema .*schema\.json does not exist; name a JSON schema file, or fhir-r4"
    ):
        checker(str(path))
    path.write_text(json.dumps({"type": "thing"}), encoding="utf-8")
    with pytest.raises(UsageError, match="is not a valid JSON schema"):
        checker(str(path))


@pytest.mark.parametrize(
    ("answer", "references", "valid", "same"),
    [
        ('{"a": 1, "b": [true]}', ['{"b":[true],"a":1.0}'], 100, 100),
        ('{"a": 1}', ['{"a": 2}', '{"a": 1}'], 100, 100),
        ('{"a": 1}', ['{"a": true}'], 100, 0),
        ('{"a": 1}', ['{"a": "1"}'], 100, 0),
        ("[1, 2]", ["[2, 1]"], 100, 0),
        ("null", ["null"], 100, 100),
        ("«a: 1", ["«a: 1"], 0, 0),
        ("", [""], 0, 0),
        ('{"a": NaN}', ['{"a": NaN}'], 0, 0),
        ("[" * 100_000, ["[]"], 0, 0),
    ],
    ids=range(10),
)
def test_valid_and_same_value(answer: str, references: list[str], valid: int, same: int) -> None:
    assert {name: row.tolist() for name, row in structured([answer], [references]).items()} == {
        "valid": [valid],
        "same_value": [same],
    }


def test_an_invalid_answer_can_equal_its_reference() -> None:
    scores = structured([json.dumps(OBSERVATION), "{}"], [[json.dumps(OBSERVATION)], ["{}"]], "fhir-r4")
    assert scores["valid"].tolist() == [100, 0] and scores["same_value"].tolist() == [100, 100]


def write_schema(folder: Path, schema: dict[str, Any]) -> str:
    path = folder / "schema.json"
    path.write_text(json.dumps(schema), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": r"^(\d+)*$"}}},
        {"anyOf": [{"patternProperties": {"^(b|b?)+$": {}}}, {"type": "null"}], "additionalProperties": False},
    ],
)
def test_a_catastrophic_pattern_is_refused_before_training(tmp_path: Path, schema: dict[str, Any]) -> None:
    path = write_schema(tmp_path, schema)
    with pytest.raises(UsageError, match=r"schema\.json: the pattern .* cannot be matched within 5 s"):
        require(Evaluate(json_schema=path))


def test_a_pattern_that_is_catastrophic_on_an_answer_is_refused(tmp_path: Path) -> None:
    path = write_schema(tmp_path, {"items": {"pattern": "^(xyz|xyz)+$"}})
    require(Evaluate(json_schema=path))  # no probe contains these letters in this order
    with pytest.raises(UsageError, match=r"the pattern '\^\(xyz\|xyz\)\+\$' cannot be matched"):
        structured([json.dumps(["xyz" * 40 + "!"])], [()], path)


def test_fast_patterns_are_checked(tmp_path: Path) -> None:
    schema = {"items": {"pattern": r"^[A-Z]{2,}\d*$"}, "properties": {"pattern": {"pattern": r"^\w+$"}}}
    path = write_schema(tmp_path, schema)
    require(Evaluate(json_schema=path))
    assert structured(['["AB1"]', '["ab"]', "[" * 3], [()] * 3, path)["valid"].tolist() == [100.0, 0.0, 0.0]

"""Fields of objects of an export: right types are read, and errors name file, message and field."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lora_ft.core.errors import LoraFtError
from lora_ft.data.chats.fields import Fields


def fields(**value: Any) -> Fields:
    return Fields(value, "x.json", "Slack")


def test_right_types_are_read() -> None:
    fields_read = fields(
        a="x", n=7, t=True, d={"b": "y"}, l=[{"c": "z"}], none=None, s="1700000000.5", at="2024-01-02T03:04:05Z"
    )
    assert (fields_read.text("a"), fields_read.text("none"), fields_read.text("missing"), fields_read.key("n")) == (
        "x",
        "",
        "",
        "7",
    )
    assert fields_read.flag("t") and not fields_read.flag("none") and fields_read.child("none") is None
    child = fields_read.child("d")
    assert (
        child is not None and child.text("b") == "y" and [item.text("c") for item in fields_read.children("l")] == ["z"]
    )
    assert fields_read.seconds("s") == 1700000000.5 and fields_read.date("at") == 1704164645.0
    assert "none" in fields_read and "missing" not in fields_read


@pytest.mark.parametrize(
    ("method", "value", "part"),
    [
        ("text", 7, "x.json, message m1: a is a number, not a text (got 7); export it again from Slack"),
        ("text", ["x"], "a is a list, not a text (got ['x'])"),
        ("key", 1.5, "a is a number, not a text (got 1.5)"),
        ("key", True, "a is true or false, not a text"),
        ("flag", "yes", "a is a text, not true or false (got yes)"),
        ("child", [], "a is a list, not an object"),
        ("values", {}, "a is an object, not a list"),
        ("children", [1], "a is a number, not a list of objects"),
        ("seconds", "soon", "x.json, message m1, has no date that can be read (a: soon)"),
        ("seconds", None, "has no date that can be read (a: None)"),
        ("seconds", "nan", "has no date that can be read (a: nan)"),
        ("seconds", 10**300, "has no date that can be read (a: 1000"),
        ("seconds", True, "has no date that can be read"),
        ("date", 7, "has no date that can be read (a: 7)"),
        ("date", "2024-13-01", "has no date that can be read (a: 2024-13-01)"),
        ("text", {"\x1b[31m": 100 * "x"}, "(got {'\\x1b[31m': 'xxxxxx"),
    ],
)
def test_wrong_types_are_refused_by_name(method: str, value: Any, part: str) -> None:
    checked = Fields({"a": value, "id": "m1"}, "x.json", "Slack").named("id")
    with pytest.raises(LoraFtError, match=re.escape(part)):
        result = getattr(checked, method)("a")
        list(result)


def test_value_that_is_not_an_object_is_refused() -> None:
    with pytest.raises(LoraFtError, match=r"x\.json is a list, not an object \(got \[1\]\)"):
        Fields([1], "x.json", "Slack")

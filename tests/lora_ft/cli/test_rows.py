"""Inputs of `generate`, and outputs that keep the columns of their rows."""

from __future__ import annotations

import datetime
import io
import json
import math
import os
from decimal import Decimal
from pathlib import Path

import pytest

from lora_ft.cli.rows import read_inputs, write_outputs
from lora_ft.core.errors import LoraFtError, UsageError


def test_columns_are_written_in_json_types(tmp_path: Path) -> None:
    row = {
        "when": datetime.datetime(2023, 1, 1, 12),
        "day": datetime.date(2023, 1, 1),
        "price": Decimal("1.50"),
        "raw": b"ab",
        "none": math.nan,
        "half": "\ud83d",
        "inside": {"list": [1, True, None, datetime.time(3)]},
    }
    write_outputs([row, "text"], ["a", "b"], tmp_path / "out.jsonl")
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines())
    assert first == {
        "when": "2023-01-01T12:00:00",
        "day": "2023-01-01",
        "price": "1.50",
        "raw": "YWI=",
        "none": None,
        "half": "\ud83d",
        "inside": {"list": [1, True, None, "03:00:00"]},
        "output": "a",
    }
    assert second == {"input": "text", "output": "b"}


def test_only_line_ends_separate_inputs(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes("a\u2028b\x85c\x0cd\r\n\ne\rf\n".encode("utf-16"))
    assert read_inputs([], tmp_path / "in.txt") == ["a\u2028b\x85c\x0cd", "e", "f"]


def test_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    for name in ("in.txt", "in.jsonl"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UsageError, match="is a FIFO, not a file"):
            read_inputs([], tmp_path / name)


def test_lines_of_an_answer_stay_lines_when_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    write_outputs(["x"], ["def f(a):\n    return a\n\nsome words that are longer"], None, wrap=16)
    assert capsys.readouterr().out == "def f(a):\n    return a\n\nsome words that\nare longer\n"


def test_an_error_in_the_file_of_an_option_has_nothing_to_do_with_a_task(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_inputs([], tmp_path / "none.jsonl")
    assert caught.value.remedy == "correct the name"
    (tmp_path / "lines.txt").write_bytes("für".encode("cp1252"))
    with pytest.raises(LoraFtError, match="is not UTF-8") as damaged:
        read_inputs([], tmp_path / "lines.txt")
    assert damaged.value.remedy == "save the file as UTF-8"


def test_a_byte_order_mark_is_not_part_of_the_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffa b\nc\ufeff\n"))
    assert read_inputs([], None) == ["a b", "c\ufeff"]

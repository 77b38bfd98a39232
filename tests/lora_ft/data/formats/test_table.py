"""Parquet: types are kept, failures are LoraFtErrors, and memory is bounded."""

from __future__ import annotations

import io
import random
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.formats import table
from lora_ft.data.formats.content import Content
from lora_ft.data.formats.table import read_parquet


def content(columns: pyarrow.Table) -> Content:
    out = io.BytesIO()
    pyarrow.parquet.write_table(columns, out)
    return Content(Path("x.parquet"), "x.parquet", out.getvalue())


def test_categories_structs_lists_and_decimals_are_values() -> None:
    columns = pyarrow.table(
        {
            "cat": pyarrow.array(["a", "b", "a"]).dictionary_encode(),
            "translation": [{"en": "x", "de": "y"}, None, {"en": None, "de": "z"}],
            "answers": [["a"], [], None],
            "price": [Decimal("1.50"), None, Decimal("2.00")],
        }
    )
    rows = [row for _, row in read_parquet(content(columns))]
    assert rows[0] == {"cat": "a", "translation": {"en": "x", "de": "y"}, "answers": ["a"], "price": Decimal("1.50")}
    assert rows[1] == {"cat": "b", "translation": None, "answers": [], "price": None}


def test_short_floats_are_the_numbers_that_were_written() -> None:
    numbers = [3.8, 0.1, 1e20, None, 5.0]
    rows = read_parquet(content(pyarrow.table({"score": pyarrow.array(numbers, pyarrow.float32())})))
    assert [row["score"] for _, row in rows] == numbers
    kind = pyarrow.struct({"list": pyarrow.list_(pyarrow.float32()), "wide": pyarrow.float64()})
    nested = [{"list": numbers, "wide": 3.799999952316284}, None, {"list": None, "wide": None}]
    rows = read_parquet(content(pyarrow.table({"nested": pyarrow.array([nested, []], pyarrow.list_(kind))})))
    assert [row["nested"] for _, row in rows] == [nested, []]


def test_many_batches_are_numbered_through() -> None:
    rows = read_parquet(content(pyarrow.table({"n": list(range(3000))})))
    assert rows[2500] == ("x.parquet[2500]", {"n": 2500})


def test_equal_names_are_refused() -> None:
    columns = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    with pytest.raises(UsageError, match="two columns named 'a'"):
        read_parquet(content(columns))


def test_file_that_is_too_large_for_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = content(pyarrow.table({"text": ["a" * 1000] * 100_000}))
    assert len(data.data) < 100_000
    monkeypatch.setattr(table, "allowed_memory", lambda: 64 << 20)
    with pytest.raises(UsageError, match="more rows than fit into memory"):
        read_parquet(data)


def test_unsupported_column_is_refused_by_name() -> None:
    column = pyarrow.array([2**62], pyarrow.timestamp("ms"))
    with pytest.raises(LoraFtError, match="column 'when' cannot be read as timestamp"):
        read_parquet(content(pyarrow.table({"when": column})))


def test_damage_is_refused_with_our_error() -> None:
    data = content(pyarrow.table({"text": [f"row {i}" for i in range(200)], "n": list(range(200))})).data
    draw = random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            read_parquet(Content(Path("x.parquet"), "x.parquet", bytes(damaged)))
        except LoraFtError as error:
            assert error.message.startswith("x.parquet")


def test_missing_pyarrow_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    data = content(pyarrow.table({"n": [1]}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pyarrow is not installed"):
        read_parquet(data)

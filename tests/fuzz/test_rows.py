"""Damaged and odd data files: they are read, or refused with an error that names them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError
from lora_ft.data.examples import ExampleMaker
from lora_ft.data.readers import Layout, read_rows
from lora_ft.data.splits import load_splits
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from tests.conftest import tiny_row, write_task
from tests.fuzz.limits import fuzz, seeds, survives
from tests.fuzz.mutations import damaged_json, json_bytes

ROWS: list[dict[str, Any]] = [
    {"text": 'a "quoted", one', "answer": "b\\", "list": ["x", {"text": "y"}], "n": 1.5},
    {"text": "ü\n漢字", "answer": "nan", "list": [], "n": None},
    {"text": '\\"c;\t|', "answer": "", "list": [{"text": None}], "n": -3},
]
LINES = "\n".join(map(json.dumps, ROWS)).encode()
CSV = b'id,text,answer\r\n1,"a ""b"", c",x\r\n2,"d\ne",y\r\n3,\\"f\\",z\r\n'


def parquet() -> bytes:
    out = io.BytesIO()
    table = pyarrow.table({"text": ["a", "b"], "answer": [["c"], None], "s": [{"x": 1}, {"x": 2}], "d": [1.5, 2.5]})
    pyarrow.parquet.write_table(table, out)
    return out.getvalue()


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", data)
    return out.getvalue()


SEEDS: dict[str, list[bytes]] = {
    "x.jsonl": [LINES, LINES.decode().encode("utf-16")],
    "x.json": [
        json.dumps(ROWS).encode(),
        json.dumps({"data": ROWS}).encode(),
        LINES,
        json.dumps({"columns": ["text", "answer"], "index": [0], "data": [["a", "b"]]}).encode(),
        json.dumps({"text": {"0": "a"}, "answer": {"0": "b"}}).encode(),
        json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": [{"answers": [{"text": "a"}]}]}]}]}).encode(),
    ],
    "x.csv": [CSV, b"sep=;\n" + CSV.replace(b",", b";"), CSV.decode().encode("utf-16"), CSV.replace(b'""', b'\\"')],
    "x.tsv": [CSV.replace(b",", b"\t")],
    "x.parquet": [parquet()],
    "x.jsonl.gz": [gzip.compress(LINES)],
    "x.jsonl.bz2": [bz2.compress(LINES)],
    "x.jsonl.xz": [lzma.compress(LINES)],
    "x.jsonl.zst": [pyarrow.compress(LINES, codec="zstd", asbytes=True)],
    "x.zip": [zipped(LINES)],
    "x.txt": [LINES],
}
PIECES = st.binary(max_size=4) | st.sampled_from(
    [*(bytes([byte]) for byte in b'"\\[]{},\n\r\x00\xff'), b"\\ud83d", b"1" * 400, b"[" * 300, b"NaN"]
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), PIECES), max_size=4)
TASK = Task.model_validate(
    {
        "name": "t",
        "prompt": "{text} {n?none} {list[0].text?}",
        "data": {"train": "x", "target": "answer", "references": "list.text", "skip_empty": True},
    }
)


def damaged(seed: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """Return a file in which bytes were replaced, taken out or put in."""
    for share, length, piece in edits:
        place = int(share * len(seed))
        seed = seed[:place] + piece + seed[place + length :]
    return seed


@pytest.mark.parametrize("name", list(SEEDS))
@fuzz
@given(data=st.data(), edits=EDITS)
def test_a_damaged_file_is_read_or_refused(
    name: str, data: st.DataObject, edits: list[tuple[float, int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / name).write_bytes(damaged(data.draw(st.sampled_from(SEEDS[name])), edits))
    layout = data.draw(st.sampled_from([Layout(), Layout(encoding="cp1252"), Layout(delimiter=";")]))
    attempt(lambda: read_rows(folder, name, "data.train", layout), folder / name)


CELLS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=2)
    | st.dates()
    | st.decimals()
    | st.sampled_from(["\ud83d", "nan", " "]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "0", "a.b"]), inner),
    max_leaves=5,
)


@fuzz
@given(st.lists(st.dictionaries(st.sampled_from(["text", "answer", "list", "n", "list.text"]), CELLS), max_size=4))
def test_any_cell_becomes_text_or_is_refused(rows: list[dict[str, Any]]) -> None:
    maker, located = ExampleMaker(TASK), [(f"x:{i}", row) for i, row in enumerate(rows, 1)]

    def make() -> None:
        for where, row in maker.survey(located, "test").rows:
            example = maker.example(where, row, "test")
            for text in (example.prompt, example.target, *example.references):
                text.encode()

    attempt(make, None)


def attempt(job: Callable[[], Any], file: Path | None) -> None:
    """Run a job that may fail only with our error, in one line that names the file."""
    error = survives(job)
    if isinstance(error, LoraFtError):
        assert "please report" not in str(error)
        assert file is None or str(file) in error.message


@pytest.mark.parametrize("columns", ["text, answer", "number, more", "nested.a.b[1], nested.a"])
@fuzz
@given(seed=seeds)
def test_splits_of_damaged_values_hold_texts_alone(scratch: Path, tiny_base: Path, columns: str, seed: int) -> None:
    random = Random(seed)
    prompt, target = columns.split(", ")
    rows = [
        tiny_row(i, "train") | {"number": i, "more": ["a", "b"], "nested": {"a": {"b": [1, "c"]}}} for i in range(8)
    ]
    path = scratch / "values.jsonl"
    damaged_rows = damaged_json(random, rows)
    lines = damaged_rows if isinstance(damaged_rows, list) else [damaged_rows]
    path.write_bytes(b"\n".join(map(json_bytes, lines)))
    data = {"train": str(path), "target": target, "skip_empty": random.random() < 0.5}
    if random.random() < 0.5:
        data["references"] = random.choice(["more", "answer", "nested", "number"])
    task = load_task(write_task(scratch, tiny_base, prompt=f"say: {{{prompt}}}", data=data))
    result = survives(lambda: load_splits(task, ["train"]))
    for example in getattr(result, "train", ()):
        for text in (example.prompt, example.target, *example.references):
            assert isinstance(text, str) and "{'" not in text and "['" not in text  # no value of Python as text

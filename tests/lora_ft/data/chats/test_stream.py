"""JSON read object by object: equal to the json module, within limits, and every failure a LoraFtError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError
from lora_ft.data.chats import stream
from lora_ft.data.chats.stream import BEGIN, objects, top_keys, walk

TEXTS = st.text(alphabet='ab"\\[]{}:,\n1é😀', max_size=10)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@given(values=st.lists(VALUES, max_size=5), size=st.integers(1, 40), mark=st.sampled_from(["", "\ufeff"]))
def test_values_are_those_of_the_json_module(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], size: int, mark: str
) -> None:
    file = write(tmp_path_factory.getbasetemp() / "x.json", mark + json.dumps({"a": values, "b": 1}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_CHUNK", size + len(mark.encode()))
        assert list(objects(file, "a.item")) == values
        assert list(walk(file, {"a.item", "b"})) == [*(("a.item", value) for value in values), ("b", 1)]
        assert list(top_keys(file)) == ["a", "b"]


def test_the_beginnings_of_objects_are_marked(tmp_path: Path) -> None:
    file = write(tmp_path / "x.json", '{"list": [{"n": 1}, {}, {"n": 2}]}')
    values = list(walk(file, {"list.item.n"}, begins={"list.item"}))
    begin = ("list.item", BEGIN)
    assert values == [begin, ("list.item.n", 1), begin, begin, ("list.item.n", 2)]


@pytest.mark.parametrize("reader", [lambda file: objects(file, "a.item"), lambda file: walk(file, {"a.item"})])
def test_one_object_does_not_take_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Any) -> None:
    monkeypatch.setattr(stream, "MAX_OBJECT", 200_000)
    small = json.dumps({"x": 1000 * "y"})
    several = write(tmp_path / "several.json", f'{{"a": [{", ".join(1000 * [small])}]}}')
    assert len(list(reader(several))) == 1000
    large = write(tmp_path / "large.json", f'{{"a": [{small}, {{"x": [{", ".join(1000 * [small])}]}}]}}')
    with pytest.raises(LoraFtError, match=r"large\.json has an object of more than 200,000 bytes"):
        list(reader(large))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'{"a": [1, 2', "after 2 objects, is cut off"),
        (b'{"a": [1, 2}', "after 2 objects, is not JSON"),
        (b'{"a": [1, "\xff"]}', "after 1 objects, is not UTF-8"),
        ('{"a": []}'.encode("utf-16"), "is UTF-16, not UTF-8; save the file as UTF-8"),
        (b'{"a": [1, 12345678901234567890]}', "after 1 objects, has a number beyond 64 bits"),
        (b"", "after 0 objects, is cut off"),
    ],
)
def test_failures_are_errors_with_a_place(tmp_path: Path, content: bytes, part: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(LoraFtError, match=rf"x\.json,? {part}"):
        list(objects(tmp_path / "x.json", "a.item"))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoraFtError, match=r"x\.json cannot be read"):
        list(objects(tmp_path / "x.json", "item"))

"""Adapter files are compatible with safetensors, and malformed files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lora_ft.core.errors import LoraFtError
from lora_ft.export.runtime.safetensors_file import map_tensors, write_tensors

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
ARRAYS = st.sampled_from([np.float32, np.int8]).flatmap(
    lambda kind: arrays(kind, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@given(st.dictionaries(NAMES, ARRAYS, max_size=5), st.dictionaries(NAMES, st.text(st.characters(codec="utf-8"))))
def test_safetensors_reads_written_files(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray], texts: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "file"
    write_tensors(path, tensors, texts)
    for arrays_read in (load_file(path), map_tensors(path)[0]):
        assert arrays_read.keys() == tensors.keys()
        for name, array in tensors.items():
            assert arrays_read[name].dtype == array.dtype and arrays_read[name].shape == array.shape
            assert arrays_read[name].tobytes() == array.tobytes()
    assert map_tensors(path)[1] == texts
    with safe_open(path, "np") as file:
        assert (file.metadata() or {}) == texts


def test_files_of_safetensors_are_read(tmp_path: Path) -> None:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([-1, 2], np.int8), "c": np.arange(3)}
    save_file(tensors, tmp_path / "file", metadata={"for": "me"})
    arrays_read, texts = map_tensors(tmp_path / "file")
    assert texts == {"for": "me"}
    assert arrays_read.keys() == {"a", "b"}  # integers of other widths are in no file of ours
    assert all(np.array_equal(arrays_read[name], tensors[name]) for name in arrays_read)


def file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, end: int, shape: Any = None, dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    shape = [(end - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end], **more}


@pytest.mark.parametrize(
    ("header", "data", "length", "why"),
    [
        (b"", b"", None, "header would have 0"),
        ({}, b"", 2**40, "header would have"),
        ({}, b"", 2**63, "header would have"),
        (b"{} x", b"", None, "Extra data"),
        (b"\xff\xff", b"", None, "codec"),
        (b"[]", b"", None, "not an object"),
        (b'{"a": 1, "a": 1}', b"", None, "a duplicate name"),
        ({"__metadata__": {"a": 1}}, b"", None, "has values that are not texts"),
        ({"a": 1}, b"", None, "is not dtype, shape and"),
        ({"a": entry(0, 4, more=1)}, b"1234", None, "is not dtype, shape and"),
        ({"a": entry(0, 4, dtype="F31")}, b"1234", None, "dtype of a is unknown (got 'F31')"),
        ({"a": entry(0, 4, dtype=["F32"])}, b"1234", None, "dtype"),
        ({"a": entry(0, 4, [-1])}, b"1234", None, "are not sizes"),
        ({"a": entry(0, 4, [True])}, b"1234", None, "are not sizes"),
        ({"a": entry(0, 4, 1)}, b"1234", None, "are not sizes"),
        ({"a": entry(0, 8, [1])}, b"12345678", None, "do not match its shape"),
        ({"a": entry(4, 0, [1])}, b"1234", None, "do not match its shape"),
        ({"a": entry(4, 8)}, b"12345678", None, "does not begin where"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"123456789012", None, "does not begin where"),
        ({"a": entry(0, 4)}, b"12345", None, "need 4 bytes (got 5)"),
        ({"a": entry(0, 4)}, b"123", None, "need 4 bytes (got 3)"),
        ({"a": entry(0, 4 << 58, [1 << 58])}, b"1234", None, "(got 4)"),
        (b"[" * 100_000, b"", None, "not a complete"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, header: Any, data: bytes, length: int | None, why: str) -> None:
    with pytest.raises(LoraFtError, match="not a complete safetensors file") as caught:
        map_tensors(file(tmp_path / "file", header, data, length))
    assert why in str(caught.value)


@given(st.data())
def test_a_damaged_file_is_refused_or_read_completely(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "file"
    write_tensors(path, {"a": np.ones((3, 2), np.float32), "b": np.ones(5, np.int8)}, {"x": "y"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        arrays, _ = map_tensors(path)
    except LoraFtError:
        return
    assert sum(array.nbytes for array in arrays.values()) <= len(content)

"""Memory-mapped arrays in the safetensors format: a length, a JSON header, then the data (see its README).

The file is read by hand because the runtime needs nothing else of the safetensors library. Like the library, the reader
is strict: the header must account for every byte of the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.errors import LoraFtError

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8}
_SIZES = {"BOOL": 1, "U8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}
_SIZES |= {name: np.dtype(kind).itemsize for name, kind in _DTYPES.items()}
_METADATA = "__metadata__"
_LONGEST = 100_000_000  # maximum length of a header, in bytes; the library's limit
_ALIGNMENT = 64  # alignment of the data's start, in bytes


Place = tuple[str, int, int, str, tuple[int, ...]]  # name, first byte, end byte (exclusive), dtype, shape


def map_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Map the arrays of a file and return (arrays, texts). Only float and int8 arrays are mapped (bfloat16 as uint16).

    Raises:
        LoraFtError: The file is incomplete or in another format.
    """
    places, texts, data = _read(path)
    mapped = [place for place in places if place[3] in _DTYPES]
    return {
        name: data[start:stop].view(_DTYPES[kind]).reshape(shape) for name, start, stop, kind, shape in mapped
    }, texts


def describe_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return (dtype, shape) of every array of a file, without reading the data. Unmapped dtypes are included.

    Raises:
        LoraFtError: The file is incomplete or in another format.
    """
    return {name: (kind, shape) for name, _, _, kind, shape in _read(path)[0]}


def _read(path: Path) -> tuple[list[Place], dict[str, str], np.ndarray]:
    """Return (places of the arrays, texts, memory-mapped data) of a file."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST, os.fstat(file.fileno()).st_size - 8):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_no_twins)
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        texts = header.pop(_METADATA, {})
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError(f"{_METADATA} has values that are not texts")
        size = path.stat().st_size - 8 - length
        data = np.memmap(path, np.uint8, "r", offset=8 + length) if size else np.empty(0, np.uint8)
        places = [_place(name, entry) for name, entry in header.items()]
        end = 0
        for name, start, stop, _, _ in sorted(places, key=lambda place: place[1:3]):
            if start != end:
                raise ValueError(f"{name} does not begin where the one before it ends")
            end = stop
        if end != size:
            raise ValueError(f"its arrays need {end} bytes (got {size})")
    except (OSError, ValueError, RecursionError) as error:
        raise LoraFtError(
            f"{path} is not a complete safetensors file ({error})", "save or download it again"
        ) from error
    return places, texts, data


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> None:
    """Write float32 and int8 arrays and texts, and flush them to disk. The widest dtypes come first, for alignment."""
    kinds = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, Any] = {_METADATA: dict(texts)}
    end = 0
    for name in order:
        array = arrays[name]
        offsets = [end, end := end + array.nbytes]
        header[name] = {"dtype": kinds[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(np.ascontiguousarray(arrays[name]).tobytes())
        file.flush()
        os.fsync(file.fileno())


def _place(name: str, entry: Any) -> Place:
    """Return (name, first byte, end byte, dtype, shape) from an entry of the header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name} is not dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _SIZES:
        raise ValueError(f"the dtype of {name} is unknown (got {kind!r})")
    if not isinstance(shape, list) or not isinstance(offsets, list) or not all(map(_is_size, [*shape, *offsets])):
        raise ValueError(f"the shape or offsets of {name} are not sizes")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * _SIZES[kind]:
        raise ValueError(f"the offsets of {name} do not match its shape")
    return name, offsets[0], offsets[1], kind, tuple(shape)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("its header has a duplicate name")
    return entries

"""A Triton model repository around the single file: its ONNX Runtime backend generates without Python.

NAME/config.pbtxt, NAME/1/model.onnx
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from export.layouts.single import MODEL, greedy_feed

_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}


def write_triton(folder: Path, name: str, max_new_tokens: int) -> None:
    """Add the repository to a folder with generate.onnx.

    Args:
        folder: of the layout "single".
        name: of the model in Triton.
        max_new_tokens: what the task's limit is; a request says its own.
    """
    version = folder / name / "1"
    version.mkdir(parents=True)
    for file in folder.glob(f"{MODEL}*"):
        # external data is found by the name that the graph says
        shutil.copyfile(file, version / ("model.onnx" if file.name == MODEL else file.name))
    entry = '  {{ name: "{}" data_type: {} dims: [ {} ]{} }}'
    scalar = " reshape: { shape: [ ] }"  # Triton has no 0-D tensors: a request gives one value
    some = np.zeros((1, 1), np.int64)
    listed = [
        entry.format(key, _TYPES[array.dtype.name], ", ".join(["-1"] * array.ndim) or "1", "" if array.ndim else scalar)
        for key, array in greedy_feed(some, some, 0, 0).items()
    ]
    lines = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        "# batches come padded with 0; one token sequence a row comes back, ending with 1; temperature 0 asks for the",
        "# likeliest tokens, another one for tokens drawn by the random numbers in uniform, one for each token",
        "max_batch_size: 0",
        "# start the server with ORT_DISABLE_TELEMETRY=1 in its environment, or ONNX Runtime reports to Microsoft",
        f"# max_new_tokens of the task: {max_new_tokens}; min_new_tokens: 0",
        "input [",
        ",\n".join(listed),
        "]",
        "output [",
        entry.format("sequences", _TYPES["int64"], "-1, -1", ""),
        "]",
        "",
    ]
    (folder / name / "config.pbtxt").write_text("\n".join(lines), encoding="utf-8")


def _quoted(text: str) -> str:
    """A text as a string of protobuf's text format: UTF-8 octets beyond plain ASCII, quotes and backslashes escaped."""
    plain = (
        chr(octet) if 32 <= octet < 127 and chr(octet) not in '"\\' else f"\\{octet:03o}" for octet in text.encode()
    )
    return f'"{"".join(plain)}"'

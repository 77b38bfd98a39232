"""A Triton model repository. Triton's ONNX Runtime backend generates without Python and batches concurrent requests.

    NAME/config.pbtxt, NAME/README.md, NAME/1/model.onnx

Triton's dynamic batcher joins requests along the first axis of every input, so no option can apply to a whole call. In
this graph every option is [b,1], one value per row. A row gets the same tokens as in a separate request. The backend
does not pad, so requests with inputs of different lengths are never joined. Callers therefore pad to a few common
lengths, as the README in the repository explains.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lora_ft.export.onnx.graph import save
from lora_ft.export.onnx.graphs import single_model
from lora_ft.export.onnx.model_parts import ModelParts
from lora_ft.export.runtime.session import open_session

_MODEL = Path("1", "model.onnx")
_LARGEST_BATCH = 32  # rows; a server with more memory can raise it in config.pbtxt
_DELAY = 2000  # maximum wait for other requests, in microseconds; about one step of FLAN-T5-small on a CPU
_INPUTS = {
    "input_ids": ("INT64", -1),
    "attention_mask": ("INT64", -1),
    "min_new_tokens": ("INT64", 1),
    "max_new_tokens": ("INT64", 1),
    "temperature": ("FP32", 1),
    "top_k": ("INT64", 1),
    "top_p": ("FP32", 1),
    "uniform": ("FP32", -1),
}
_README = """# Serving with Triton

Copy this folder into the server's model repository. Start the server with `ORT_DISABLE_TELEMETRY=1` in its
environment, since ONNX Runtime sends telemetry to Microsoft otherwise.

A request has one or more rows. The first axis of every tensor is the row.

| input | type | shape | meaning |
|---|---|---|---|
| `input_ids` | INT64 | [rows, length] | tokens of the prompt, including its end token, padded with {pad} |
| `attention_mask` | INT64 | [rows, length] | 1 for tokens, 0 for padding |
| `min_new_tokens` | INT64 | [rows, 1] | minimum answer length, in tokens; 0 for no minimum |
| `max_new_tokens` | INT64 | [rows, 1] | maximum answer length, in tokens; the task's limit is {limit} |
| `temperature` | FP32 | [rows, 1] | 0 for the likeliest tokens; otherwise tokens are sampled |
| `top_k` | INT64 | [rows, 1] | number of likeliest tokens to sample from; 0 for all |
| `top_p` | FP32 | [rows, 1] | total probability of the likeliest tokens to sample from; 1 for all |
| `uniform` | FP32 | [rows, numbers] | random numbers in [0, 1), one per new token |

The output `sequences`, INT64 [rows, n], contains the tokens of the answers. A row ends with {ends}, or at its
`max_new_tokens`, and is padded with {pad}. n is the length of the longest answer in the batch, which may include other
requests, so truncate each row after its end.

## Options per row

Every row has its own options, which the graph applies. Rows with sampling and without, and rows with short and long
limits, can share a batch. A row gets the same answer as in a separate request, except for ties that rounding decides.
Precisions with 8-bit arithmetic (`int8`, `int8-w8`, `int8-w4`) are an exception: they scale the whole batch at once, so
a row's answer may depend on the other rows. Set `max_batch_size: 1` if that matters.

`uniform` needs at least `max_new_tokens` columns if the temperature is above 0. A row with fewer columns is -1
throughout, and the other rows are not affected. At temperature 0 the numbers are not used: send one column of zeros,
or as many columns as the requests that should share the batch.

## Requests that share a batch

Triton joins requests that wait at the same time, up to `max_batch_size` rows, if all their inputs have the same shape
apart from the number of rows. It does not pad. Pad `input_ids` and `attention_mask` to a few lengths (32, 64, 128, ...;
padding does not change the answer), and use the same number of columns for `uniform` in all requests, such as {limit}.

A batch runs until its last row has ended. If answers differ widely in length, use a small `max_batch_size`.
`max_queue_delay_microseconds` is the maximum time that a request waits for others.
"""


def write_triton(folder: Path, name: str, parts: ModelParts, max_new_tokens: int) -> Path:
    """Add a model repository to a folder and return its path.

    Args:
        folder: Folder to create the repository in.
        name: Name of the model in Triton.
        parts: Parts of the model.
        max_new_tokens: Maximum answer length of the task, in tokens, for the README. Each row sets its own limit.
    """
    repository = folder / name
    (repository / _MODEL).parent.mkdir(parents=True)
    save(single_model(parts, by_row=True), repository / _MODEL)
    special = parts.architecture.special
    ends = " or ".join(map(str, special.ends))
    readme = _README.format(pad=special.pad, ends=ends, limit=max_new_tokens)
    (repository / "README.md").write_text(readme, encoding="utf-8")
    (repository / "config.pbtxt").write_text(_config(name), encoding="utf-8")
    return repository


def rows_feed(ids: np.ndarray, mask: np.ndarray, least: int, most: int) -> dict[str, np.ndarray]:
    """Return all inputs for greedy search, with `least` to `most` new tokens in each row."""
    column = np.ones((len(ids), 1), np.int64)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "min_new_tokens": column * least,
        "max_new_tokens": column * most,
        "temperature": np.zeros(column.shape, np.float32),
        "top_k": column * 0,
        "top_p": column.astype(np.float32),
        "uniform": np.zeros(column.shape, np.float32),
    }


def answer(folder: Path, ids: np.ndarray, mask: np.ndarray, limit: int) -> np.ndarray:
    """Return the tokens that the model of a repository generates greedily, in plain ONNX Runtime."""
    (tokens,) = open_session(folder / _MODEL).run(["sequences"], rows_feed(ids, mask, 0, limit))
    return np.asarray(tokens)


def _config(name: str) -> str:
    """Return the content of config.pbtxt. Triton's `dims` omit the row axis."""
    entry = '  {{ name: "{}" data_type: TYPE_{} dims: [ {} ] }}'
    inputs = ",\n".join(entry.format(key, kind, width) for key, (kind, width) in _INPUTS.items())
    return f"""name: {_quoted(name)}
backend: "onnxruntime"
# README.md explains the inputs, and which requests share a batch.
# Start the server with ORT_DISABLE_TELEMETRY=1, since ONNX Runtime sends telemetry to Microsoft otherwise.
max_batch_size: {_LARGEST_BATCH}
dynamic_batching {{ max_queue_delay_microseconds: {_DELAY} }}
input [
{inputs}
]
output [
{entry.format("sequences", "INT64", -1)}
]
"""


def _quoted(text: str) -> str:
    """Return a string literal in protobuf's text format, with quotes, backslashes and bytes beyond ASCII escaped."""
    plain = (
        chr(octet) if 32 <= octet < 127 and chr(octet) not in '"\\' else f"\\{octet:03o}" for octet in text.encode()
    )
    return f'"{"".join(plain)}"'

"""A Triton model repository. Triton's ONNX Runtime backend generates without Python and batches concurrent requests.

    NAME/config.pbtxt, NAME/README.md, NAME/1/model.onnx

Triton's dynamic batcher joins requests along the first axis of every input, so no option can apply to a whole call. In
this graph every option is [b,1], one value for each row. A row gets the same tokens as in a request of its own.
The backend does not pad, so requests with inputs of different lengths are never joined. Callers therefore pad to a few
common lengths, as the README in the repository explains.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lora_ft.export.onnx.graph import save
from lora_ft.export.onnx.graphs import single_model
from lora_ft.export.onnx.t5 import T5
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

Copy this folder into the server's model repository, and start the server with `ORT_DISABLE_TELEMETRY=1` in its
environment, or ONNX Runtime reports to Microsoft.

A request holds one row or several; the first axis of every tensor is the row.

| input | type | shape | meaning |
|---|---|---|---|
| `input_ids` | INT64 | [rows, length] | tokens of the whole prompt and its end token, then {pad} as padding |
| `attention_mask` | INT64 | [rows, length] | 1 for tokens, 0 for padding |
| `min_new_tokens` | INT64 | [rows, 1] | tokens before the answer may end; 0 for any |
| `max_new_tokens` | INT64 | [rows, 1] | most tokens of the answer; the task's limit is {limit} |
| `temperature` | FP32 | [rows, 1] | 0 for the likeliest tokens, otherwise tokens are drawn |
| `top_k` | INT64 | [rows, 1] | draw from so many of the likeliest tokens; 0 for all |
| `top_p` | FP32 | [rows, 1] | draw from the fewest tokens that have this probability together; 1 for all |
| `uniform` | FP32 | [rows, numbers] | random numbers from 0 to below 1, one for each new token |

The output `sequences`, INT64 [rows, n], holds the tokens of the answers. A row ends with {ends} or at its own
`max_new_tokens`; what follows is {pad}. n belongs to the longest answer of the batch, so it may be larger than a
request alone would have it: cut each row after its end.

## Options of each row

Every row has options of its own, and they are applied within the graph: rows that draw and rows that do not, short and
long limits can share a batch. A row gets the answer that it gets alone, but for rounding that tips a tie. Precisions
with 8-bit arithmetic (`int8`, `int8-w8`, `int8-w4`) are an exception: they scale a whole batch at once, so a row's
answer may depend on the rows beside it. Set `max_batch_size: 1` there if that matters.

`uniform` needs at least `max_new_tokens` columns where the temperature is above 0. A row with fewer comes back as -1
throughout, and the rows beside it are not harmed. At temperature 0 the numbers are not read: send one column of zeros,
or as many columns as the requests that are to share the batch.

## Which requests are joined

Triton joins requests that wait at the same time, up to `max_batch_size` rows, if all their inputs have the same shape
but for the rows. It does not pad. So pad `input_ids` and `attention_mask` to a few lengths (32, 64, 128, ...; padding
does not change the answer), and give `uniform` one number of columns in all requests, such as {limit}.
A batch runs until its last row has ended, so a server with answers of very unlike lengths does better with a small
`max_batch_size`. `max_queue_delay_microseconds` says how long a request waits for others.
"""


def write_triton(folder: Path, name: str, t5: T5, max_new_tokens: int) -> Path:
    """Add a model repository to a folder and return its path.

    Args:
        folder: Folder to create the repository in.
        name: Name of the model in Triton.
        t5: Model.
        max_new_tokens: Maximum answer length of the task, in tokens, for the README. Each row sets its own limit.
    """
    repository = folder / name
    (repository / _MODEL).parent.mkdir(parents=True)
    save(single_model(t5, by_row=True), repository / _MODEL)
    special = t5.architecture.special
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
# README.md explains the inputs, and which requests are joined.
# Start the server with ORT_DISABLE_TELEMETRY=1 in its environment, or ONNX Runtime reports to Microsoft.
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

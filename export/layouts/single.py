"""One ONNX file that generates: encoder and loop inside, so any language with ONNX Runtime needs a single call.

    input_ids[b,s], attention_mask[b,s], min_new_tokens[], max_new_tokens[] (all int64),
    temperature[] (float; 0 for the likeliest tokens), top_k[] (int64; 0 for all), top_p[] (float; 1 for all),
    uniform[b,max_new_tokens] (float: random numbers from 0 to below 1; [0,0] for the likeliest tokens). With fewer of
    them the call fails at a node whose name says so: "uniform_needs_max_new_tokens_columns"
    -> sequences[b,n] (int64), padded with 0 after </s>, which is 1

The caller brings the random numbers, so it holds the seed. A Triton model repository is written around the file by
`triton.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.graph import save
from export.graphs import single_model
from export.runtime.session import open_session
from export.t5 import T5

MODEL = "generate.onnx"


def write(folder: Path, t5: T5) -> None:
    """Write generate.onnx, with its weights beside it where they are beyond what one file may hold."""
    save(single_model(t5), folder / MODEL)


def greedy_feed(ids: np.ndarray, mask: np.ndarray, least: int, most: int) -> dict[str, np.ndarray]:
    """Everything that the file takes, for the likeliest tokens, of which there are so many at least and at most."""
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "min_new_tokens": np.array(least),
        "max_new_tokens": np.array(most),
        "temperature": np.array(0, np.float32),
        "top_k": np.array(0),
        "top_p": np.array(1, np.float32),
        "uniform": np.empty((0, 0), np.float32),
    }


def answer(folder: Path, ids: np.ndarray, mask: np.ndarray, limit: int) -> np.ndarray:
    """What the file generates, in one call of plain ONNX Runtime."""
    (tokens,) = open_session(folder / MODEL).run(["sequences"], greedy_feed(ids, mask, 0, limit))
    return np.asarray(tokens)

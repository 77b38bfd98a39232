"""One ONNX file that generates: encoder and greedy loop inside, so any language with ONNX Runtime needs a single call.

    input_ids[b,s], attention_mask[b,s], min_new_tokens[], max_new_tokens[] (int64) -> sequences[b,n], padded after </s>

It is what a Triton model repository is written around, see `triton.py`.
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


def answer(folder: Path, ids: np.ndarray, mask: np.ndarray, limit: int) -> np.ndarray:
    """What the file generates, in one call of plain ONNX Runtime."""
    feed = {"input_ids": ids, "attention_mask": mask, "min_new_tokens": np.array(0), "max_new_tokens": np.array(limit)}
    (tokens,) = open_session(folder / MODEL).run(["sequences"], feed)
    return np.asarray(tokens)

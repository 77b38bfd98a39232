"""One ONNX file that generates: encoder and loop inside, so any language with ONNX Runtime needs a single call.

    input_ids[b,s], attention_mask[b,s], min_new_tokens[], max_new_tokens[] (all int64),
    temperature[] (float; 0 for the likeliest tokens), top_k[] (int64; 0 for all), top_p[] (float; 1 for all),
    uniform[b,max_new_tokens] (float: random numbers from 0 to below 1; [0,0] for the likeliest tokens). With fewer of
    them the call fails at a node whose name says so: "uniform_needs_max_new_tokens_columns"
    -> sequences[b,n] (int64), padded with pad_token_id after a token of eos_token_id, both of generation_config.json

The caller brings the random numbers, so it holds the seed. Beams, bans, penalties and forced tokens are not in the
graph, see `unsupported`. A Triton model repository holds a variant whose options are each row's own, see `triton.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.export.onnx.graph import save
from lora_ft.export.onnx.graphs import single_model
from lora_ft.export.onnx.t5 import T5
from lora_ft.export.runtime.session import open_session

MODEL = "generate.onnx"
# A call says these itself, through the inputs of the same names or its random numbers.
_INPUTS = ("max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "seed")
_SAME_ANSWERS = ("prompt_lookup", "length_penalty", "early_stopping")  # the last two are read by beam search alone

_EXAMPLE = """import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

folder = "."
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.enable_padding()  # with 0, on the right
session = InferenceSession(f"{folder}/generate.onnx")
rows = tokenizer.encode_batch(["a prompt", "another, longer prompt"])
inputs = {
    "input_ids": np.array([row.ids for row in rows]),
    "attention_mask": np.array([row.attention_mask for row in rows]),
    "min_new_tokens": np.array({min_new_tokens}),
    "max_new_tokens": np.array({max_new_tokens}),
    "temperature": np.array({temperature}, np.float32),  # 0 for the likeliest tokens
    "top_k": np.array({top_k}),
    "top_p": np.array({top_p}, np.float32),
    "uniform": {uniform},  # at a temperature: random numbers [rows, max_new_tokens]
}
(sequences,) = session.run(["sequences"], inputs)
print(tokenizer.decode_batch(sequences.tolist()))"""


def unsupported(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation settings that change answers and that the file cannot honour.

    Args:
        generation: Settings by the names of `Options`.
    """
    neutral = {name: value for name, value in vars(Options()).items() if name not in (*_INPUTS, *_SAME_ANSWERS)}
    return {
        name: value for name, value in generation.items() if name in neutral and value not in (None, [], neutral[name])
    }


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


def example(generation: Mapping[str, Any]) -> str:
    """Return Python code that answers two prompts with the file.

    Args:
        generation: Settings by the names of `Options`; those that are inputs of the file are used.
    """
    options = Options.of({"max_new_tokens": 128} | {name: generation[name] for name in _INPUTS if name in generation})
    values = {name: getattr(options, name) for name in _INPUTS}
    if options.do_sample:
        values["uniform"] = f"np.random.default_rng().random((len(rows), {options.max_new_tokens}), np.float32)"
    else:
        values |= {"temperature": 0, "top_k": 0, "top_p": 1, "uniform": "np.empty((0, 0), np.float32)"}
    code = _EXAMPLE
    for name, value in values.items():
        code = code.replace(f"{{{name}}}", str(value))
    return code

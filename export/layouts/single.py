"""One ONNX file with the encoder and the generation loop, so that a single call of ONNX Runtime generates an answer.

    input_ids[b,s], attention_mask[b,s], min_new_tokens[], max_new_tokens[] (all int64),
    temperature[] (float; 0 for the likeliest tokens), top_k[] (int64; 0 for all), top_p[] (float; 1 for all),
    uniform[b,max_new_tokens] (float: random numbers in [0, 1); shape [0,0] for the likeliest tokens)
    -> sequences[b,n] (int64), padded with pad_token_id after a token of eos_token_id (see generation_config.json)

The caller passes the random numbers and thus controls the seed. With too few columns the call fails at a node named
"uniform_needs_max_new_tokens_columns". Beams, bans, penalties and forced tokens are not in the graph; see
`unsupported`. A Triton model repository contains a variant with separate options per row; see `triton.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.export.onnx.graph import save
from lora_ft.export.onnx.graphs import single_model
from lora_ft.export.onnx.model_parts import ModelParts
from lora_ft.export.runtime.session import open_session

MODEL = "generate.onnx"
# Options that each call sets, through inputs of the same names or its random numbers.
_INPUTS = ("max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "seed")
_SAME_ANSWERS = ("prompt_lookup", "length_penalty", "early_stopping")  # only beam search reads the last two

_EXAMPLE = """import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

folder = "."
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.enable_padding()  # pads with 0 on the right
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
    "uniform": {uniform},  # if temperature > 0: random numbers [rows, max_new_tokens]
}
(sequences,) = session.run(["sequences"], inputs)
print(tokenizer.decode_batch(sequences.tolist()))"""


def unsupported(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation settings that change answers but are not supported by the file.

    Args:
        generation: Settings by the names of `Options`.
    """
    neutral = {name: value for name, value in vars(Options()).items() if name not in (*_INPUTS, *_SAME_ANSWERS)}
    return {
        name: value for name, value in generation.items() if name in neutral and value not in (None, [], neutral[name])
    }


def write(folder: Path, parts: ModelParts) -> None:
    """Write generate.onnx. Weights too large for one file are stored next to it."""
    save(single_model(parts), folder / MODEL)


def greedy_feed(ids: np.ndarray, mask: np.ndarray, least: int, most: int) -> dict[str, np.ndarray]:
    """Return all inputs of the file for greedy search.

    Args:
        ids: Prompt tokens, int64 [b,s].
        mask: Attention mask of the prompt, int64 [b,s].
        least: Minimum answer length, in tokens.
        most: Maximum answer length, in tokens.
    """
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
    """Return the tokens that the file generates greedily, in one call of plain ONNX Runtime."""
    (tokens,) = open_session(folder / MODEL).run(["sequences"], greedy_feed(ids, mask, 0, limit))
    return np.asarray(tokens)


def example(generation: Mapping[str, Any]) -> str:
    """Return Python code that answers two prompts with the file.

    Args:
        generation: Settings by the names of `Options`. Settings that are not inputs of the file are ignored.
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

"""Random answers under a constraint, and whether a value is one, on a vocabulary of single characters."""

from __future__ import annotations

import functools
import json
import string
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.codecs import codec_named
from lora_ft.core.constraint import Constraint, Rows
from lora_ft.core.tokenizer import Tokenizer
from tests.tiny import tiny_tokenizer

NONE = "名"  # a character that the vocabulary lacks
_PIECES = [character for character in string.punctuation + "«»′•é " if character not in ".,:!?"]
END = 1


@functools.cache
def tokenizer_of(codec: str) -> Tokenizer:
    """Return a tokenizer with a token for each character."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        tiny_tokenizer("".join(_PIECES).replace(" ", "")).save(str(path))
        return Tokenizer(path, codec_named(codec))


def accepts(schema: dict[str, Any], codec: str, value: Any) -> bool:
    """Return whether a value, written as a target, is among the answers."""
    tokenizer = tokenizer_of(codec)
    (tokens,) = tokenizer.encode_targets([json.dumps(value, ensure_ascii=False)])
    return Constraint(schema, tokenizer).accepts(tokens)


def random_answer(schema: dict[str, Any], codec: str, seed: int, limit: int = 600) -> str:
    """Return the text of an answer of random allowed tokens; it must end before the limit."""
    tokenizer, rng = tokenizer_of(codec), np.random.default_rng(seed)
    rows, tokens = Rows(Constraint(schema, tokenizer)), np.zeros((1, 1), np.int64)
    for _ in range(limit):
        (allowed,) = rows.allowed(tokens, tokenizer.rows)
        token = rng.choice(np.flatnonzero(allowed))
        if token == END:
            return tokenizer.decode([tokens[0, 1:]])[0]
        tokens = np.concatenate([tokens, [[token]]], axis=1)
    raise AssertionError(f"no end: {tokenizer.decode([tokens[0, 1:]])[0]}")

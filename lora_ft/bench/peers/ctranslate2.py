"""CTranslate2, with oneDNN or with MKL (`CT2_USE_MKL`); its wheel holds both.

Its vocabulary maps are not used. A map limits the head to tokens that the training rows had, so texts change.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import ctranslate2
import numpy as np
from tokenizers import Tokenizer

BEAMS, TOP_K = 4, 50
TYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}  # fp16 is for GPUs


def convert(checkpoint: Path, prepared: Path, precision: str) -> None:
    """Write the model and the tokenizer."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(checkpoint)).convert(str(prepared), quantization=TYPES[precision])
    shutil.copyfile(checkpoint / "tokenizer.json", prepared / "tokenizer.json")


class Translator:
    """CTranslate2's own loop, which takes and returns tokens as text."""

    def __init__(self, prepared: Path, precision: str, threads: int, provider: str) -> None:
        self._translator = ctranslate2.Translator(
            str(prepared), device=provider, compute_type=TYPES[precision], intra_threads=threads
        )
        self._tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))

    def generate(self, ids: np.ndarray, mask: np.ndarray, new: int, least: int, decoding: str, room: int) -> np.ndarray:
        """Return tokens [b, n <= new], padded with -1."""
        name, number = self._tokenizer.id_to_token, self._tokenizer.token_to_id
        rows = [[name(int(i)) for i in row[: int(valid.sum())]] for row, valid in zip(ids, mask, strict=True)]
        results = self._translator.translate_batch(
            rows,
            beam_size=BEAMS if decoding == "beams" else 1,
            sampling_topk=TOP_K if decoding == "sample" else 1,
            min_decoding_length=least,
            max_decoding_length=new,
            max_input_length=0,
        )
        answers = [[number(token) for token in result.hypotheses[0]] for result in results]
        longest = max(map(len, answers))
        return np.array([answer + [-1] * (longest - len(answer)) for answer in answers], np.int64)


load = Translator

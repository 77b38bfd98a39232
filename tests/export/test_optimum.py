"""The bundle and Optimum's ONNX export of the same checkpoint generate the same text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export_onnx import export_onnx
from lora_ft.generate import generate
from lora_ft.models.loading import load
from tests.export.oracle import SPECIAL
from tests.tiny import save_tiny_t5

optimum = pytest.importorskip("optimum.onnxruntime", reason="optimum-onnx needs transformers below 4.58")


def test_bundle_and_optimum_generate_the_same_text(tmp_path: Path) -> None:
    # Optimum takes d_kv for d_model / heads, so this base is one of the few shapes for which that is true.
    base = save_tiny_t5(tmp_path / "base", d_model=32, num_heads=4, d_kv=8)
    theirs = optimum.ORTModelForSeq2SeqLM.from_pretrained(base, export=True, use_merged=False)
    tokenizer = Tokenizer(base / "tokenizer.json")
    texts = ["abc", "some more words here", "x y z"]
    expected = []
    for ids in tokenizer.encode(texts):
        out = theirs.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=16
        )
        expected.append(tokenizer.decode([SPECIAL.trim(out[0, 1:].numpy())])[0])
    ours = load(str(export_onnx(str(base), tmp_path / "bundle").out))
    assert generate(ours, texts, {"max_new_tokens": 16}) == expected

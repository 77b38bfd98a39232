"""Engines in a worker's process answer as transformers' own `generate` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lora_ft.bench.worker import _Torch
from lora_ft.models.bases import load_model


@pytest.mark.parametrize("least", [0, 8])
def test_static_cache_changes_no_answer(tiny_base: Path, least: int) -> None:
    model, ids = load_model(tiny_base), np.array([[5, 6, 7, 1]])
    with torch.no_grad():  # the end token is likely, and the answer ends where it may
        model.lm_head.weight[model.config.eos_token_id] *= 3
    expected = _Torch(model).generate(ids, np.ones_like(ids), 8, least, "greedy", 12)
    assert (expected.shape[1] == 8) == (least == 8)
    with torch.compiler.set_stance("force_eager"):
        answers = _Torch(model, compiled=True).generate(ids, np.ones_like(ids), 8, least, "greedy", 12)
    assert answers.tolist() == expected.tolist()

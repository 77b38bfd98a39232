"""Kept states of a frozen encoder are those of the prompt, whatever its neighbors, and are computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ft.data.batching import Encoded, collate
from lora_ft.models.bases import load_model
from lora_ft.training.encoder_states import EncoderStates, distinct_prompts
from lora_ft.training.packed_rows import PackedRows
from lora_ft.training.packed_stack import PackedStacks
from tests.tiny import save_tiny_t5

ROWS = [Encoded([5 + (i * k) % 70 for k in range(3 + 2 * i)] + [1], [7, 1]) for i in range(9)]


def opened(folder: Path, *, packed: bool) -> tuple[Any, EncoderStates, list[int]]:
    """Return a base in training mode, the states of `ROWS`, and a list that grows by the rows that are encoded."""
    model = load_model(save_tiny_t5(folder), dropout=0.0).train()
    if packed:
        PackedStacks(model)
    encoded: list[int] = []
    model.get_encoder().register_forward_hook(
        lambda module, args, options, output: encoded.append(len(options["input_ids"])), with_kwargs=True
    )
    return model, EncoderStates(model, distinct_prompts(ROWS), packed=packed), encoded


@pytest.mark.parametrize("packed", [False, True])
def test_states_are_those_of_the_encoder(tmp_path: Path, packed: bool) -> None:
    model, states, _ = opened(tmp_path / "base", packed=packed)
    batch = collate([ROWS[2], ROWS[6], ROWS[2]], 0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.autocast("cpu", torch.bfloat16, enabled=packed):
        kept, expected = states.read(batch), model.get_encoder()(**inputs).last_hidden_state
    if packed:
        tokens = sum(PackedRows.of(inputs["attention_mask"]).lengths)
        assert not kept[tokens:].any()
        real = slice(tokens)
    else:
        real = inputs["attention_mask"].bool()  # type: ignore[assignment]
        assert not kept[~real].any()
    assert kept.shape == expected.shape and kept.dtype == expected.dtype and not kept.requires_grad
    torch.testing.assert_close(kept[real], expected[real], rtol=0, atol=0.1 if packed else 1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_every_prompt_is_encoded_once(tmp_path: Path, packed: bool) -> None:
    _, states, encoded = opened(tmp_path / "base", packed=packed)
    with torch.autocast("cpu", torch.bfloat16, enabled=packed):
        for epoch in range(2):
            for start in range(0, len(ROWS), 2):
                states.read(collate(ROWS[start : start + 2 + epoch], 0))
    assert sum(encoded) == len(ROWS)


def test_states_do_not_depend_on_the_order_of_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ft.training.encoder_states._TOKENS", 40)
    both = []
    for order in (1, -1):
        _, states, encoded = opened(tmp_path / str(order), packed=False)
        both.append({len(row.input_ids): states.read(collate([row], 0)) for row in ROWS[::order]})
        assert len(encoded) > 2
    assert all(torch.equal(states, both[1][length]) for length, states in both[0].items())

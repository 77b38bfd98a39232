"""Lean layers compute the same losses and gradients as the layers of T5 and peft that they replace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ft.core.tokenizer import IGNORED
from lora_ft.models.adapters import add_adapter
from lora_ft.models.bases import load_model
from lora_ft.tasks.lora import Lora
from lora_ft.training.lean_layers import SummedCrossEntropy, use_lean_layers
from lora_ft.training.trainer import token_loss
from tests.tiny import save_tiny_t5


def adapted(folder: Path, **lora: Any) -> Any:
    """Return a tiny base with an adapter whose B is not zero, in training mode."""
    torch.manual_seed(0)
    model = add_adapter(load_model(folder, dropout=0.0), Lora(**lora))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model.train()


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    labels = torch.randint(3, 80, (3, 7))
    labels[1, 4:] = IGNORED
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[2, 6:] = 0
    inputs = torch.randint(3, 80, (3, 11))
    return {"input_ids": inputs, "attention_mask": mask, "labels": labels, "decoder_input_ids": labels.clamp(min=0)}


def gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of a training step and the gradients of all trained weights."""
    inputs = batch()
    labels = inputs.pop("labels")
    with torch.autocast("cpu", torch.bfloat16):
        loss = token_loss(model(**inputs, use_cache=False), labels)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def similarity(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the cosine similarity of two sets of gradients."""
    flat = [torch.cat([values[name].flatten() for name in sorted(values)]) for values in (a, b)]
    return float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0))


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"preset": "tiny"},
        {"use_rslora": True, "lora_alpha": 8, "rank_pattern": {"wo": 4}},
        {"lora_dropout": 0.5},
        {"use_dora": True},
        {"trainable_token_indices": [5]},
    ],
)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_losses_and_gradients_equal_those_of_the_plain_layers(
    tmp_path: Path, lora: dict[str, Any], checkpointed: bool
) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    plain, lean = adapted(folder, **lora), adapted(folder, **lora)
    if checkpointed:
        lean.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        lean.enable_input_require_grads()
    use_lean_layers(lean)
    expected_loss, expected = gradients(plain)
    loss, measured = gradients(lean)
    assert loss == pytest.approx(expected_loss, rel=0.01)
    assert set(measured) == set(expected)
    assert {gradient.dtype for gradient in measured.values()} == {torch.float32}
    assert similarity(measured, expected) > 0.999


def test_evaluation_is_unchanged(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    plain, lean = adapted(folder).eval(), adapted(folder)
    use_lean_layers(lean)
    lean.eval()
    inputs = batch()
    with torch.no_grad():
        assert torch.equal(lean(**inputs).logits, plain(**inputs).logits)
        with lean.disable_adapter(), plain.disable_adapter():
            assert torch.equal(lean(**inputs).logits, plain(**inputs).logits)


def test_disabled_adapter_is_left_out_in_training_mode(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    lean, base = adapted(folder), load_model(folder, dropout=0.0).train()
    use_lean_layers(lean)
    inputs = batch()
    with torch.autocast("cpu", torch.bfloat16):
        expected, enabled = base(**inputs).logits, lean(**inputs).logits
        with lean.disable_adapter():
            disabled = lean(**inputs).logits
    torch.testing.assert_close(disabled, expected, atol=0.5, rtol=0.0)  # bf16 rounds logits of 20 by up to 0.06
    assert not torch.allclose(enabled, expected, atol=5.0, rtol=0.0)


@pytest.mark.parametrize("model_type", ["mt5", "umt5"])
def test_other_t5_models_train_alike(tmp_path: Path, model_type: str) -> None:
    folder = save_tiny_t5(tmp_path / "base", model_type=model_type)
    plain, lean = adapted(folder), adapted(folder)
    use_lean_layers(lean)
    assert sum("forward" in vars(module) for module in lean.modules()) == 52  # 36 linear layers, 12 norms, 4 gates
    assert similarity(gradients(lean)[1], gradients(plain)[1]) > 0.999


def test_whole_model_trains_every_norm(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    plain, lean = (load_model(folder, dropout=0.0).train() for _ in range(2))
    use_lean_layers(lean)
    expected, measured = gradients(plain)[1], gradients(lean)[1]
    assert set(measured) == set(expected)
    assert similarity(measured, expected) > 0.999


@pytest.mark.parametrize("tokens", [1, 32, 75])
def test_cross_entropy_in_chunks_equals_that_of_torch(tokens: int) -> None:
    torch.manual_seed(0)
    values, labels = 5 * torch.randn(tokens, 80), torch.randint(0, 80, (tokens,))
    labels[1::3] = IGNORED
    plain, chunked = (values.bfloat16().requires_grad_() for _ in range(2))
    expected = torch.nn.functional.cross_entropy(plain.float(), labels, ignore_index=IGNORED, reduction="sum")
    loss = SummedCrossEntropy.apply(chunked, labels, IGNORED)
    (expected / 7).backward()
    (loss / 7).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(chunked.grad, plain.grad, rtol=0.01, atol=1e-6)

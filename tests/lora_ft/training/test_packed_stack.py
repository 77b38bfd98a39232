"""Packed stacks compute the same losses and gradients as the layers of T5 and peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ft.core.tokenizer import IGNORED
from lora_ft.models.adapters import add_adapter
from lora_ft.models.bases import load_model
from lora_ft.tasks.lora import Lora
from lora_ft.training import packed_attention
from lora_ft.training.packed_rows import MULTIPLE
from lora_ft.training.packed_stack import PackedStacks
from lora_ft.training.trainer import token_loss
from tests.tiny import save_tiny_t5


def adapted(folder: Path, dropout: float = 0.0, **lora: Any) -> Any:
    """Return a tiny base with an adapter whose B is not zero, in training mode."""
    torch.manual_seed(0)
    model = add_adapter(load_model(folder, dropout=dropout), Lora(**lora))
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


def gradients(model: Any, filling: tuple[int, int] | None = None) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of a training step and the gradients of all trained weights.

    Args:
        model: Model in training mode.
        filling: Source and target tokens of a further row without a loss, as adapter groups add it, or None.
    """
    inputs = batch()
    inputs["decoder_attention_mask"] = (inputs["labels"] != IGNORED).long()
    if filling is not None:
        row = {name: torch.zeros(1, values.shape[1], dtype=values.dtype) for name, values in inputs.items()}
        row["labels"][:] = IGNORED
        row["attention_mask"][:, : filling[0]] = 1
        row["decoder_attention_mask"][:, : filling[1]] = 1
        inputs = {name: torch.cat([values, row[name]]) for name, values in inputs.items()}
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
        {"use_dora": True},
        {"trainable_token_indices": [5]},
    ],
)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_losses_and_gradients_equal_those_of_the_plain_layers(
    tmp_path: Path, lora: dict[str, Any], checkpointed: bool
) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    plain, packed = adapted(folder, **lora), adapted(folder, **lora)
    if checkpointed:
        packed.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        packed.enable_input_require_grads()
    PackedStacks(packed)
    expected_loss, expected = gradients(plain)
    loss, measured = gradients(packed)
    assert loss == pytest.approx(expected_loss, rel=0.01)
    assert set(measured) == set(expected)
    assert {gradient.dtype for gradient in measured.values()} == {torch.float32}
    assert similarity(measured, expected) > 0.999


@pytest.mark.parametrize("filling", [(5, 3), (0, 3), (5, 0), (0, 0)])
@pytest.mark.parametrize("scores", [1, 1_000_000], ids=["each row alone", "rows together"])
def test_a_row_without_loss_changes_nothing_even_if_a_side_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filling: tuple[int, int], scores: int
) -> None:
    monkeypatch.setattr(packed_attention, "_SCORES", scores)
    folder = save_tiny_t5(tmp_path / "base")
    plain, filled = adapted(folder), adapted(folder)
    for model in (plain, filled):
        PackedStacks(model)
    (expected_loss, expected), (loss, measured) = gradients(plain), gradients(filled, filling)
    assert loss == pytest.approx(expected_loss, rel=1e-3)
    assert similarity(measured, expected) > 0.9999


def test_evaluation_is_unchanged(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    plain, packed = adapted(folder).eval(), adapted(folder)
    PackedStacks(packed)
    packed.eval()
    inputs = batch()
    with torch.no_grad():
        assert torch.equal(packed(**inputs).logits, plain(**inputs).logits)
        with packed.disable_adapter(), plain.disable_adapter():
            assert torch.equal(packed(**inputs).logits, plain(**inputs).logits)


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"lora_dropout": 0.5}, {"trainable_token_indices": [5]}])
def test_losses_of_a_validation_are_those_of_the_plain_layers_without_dropout(
    tmp_path: Path, lora: dict[str, Any]
) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    plain, packed = (adapted(folder, dropout=0.5, **lora).eval() for _ in range(2))
    packing = PackedStacks(packed)
    inputs = batch()
    labels = inputs.pop("labels")
    mask = labels != IGNORED
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = token_loss(plain(**inputs), labels).item()
        with packing.scoring():
            outputs = packed(**inputs, decoder_attention_mask=mask)
        after = packed(**inputs).logits
    assert outputs.logits.ndim == 2 and len(outputs.logits) < mask.numel() + MULTIPLE
    assert token_loss(outputs, labels).item() == pytest.approx(expected, rel=0.01)
    assert after.shape[:2] == labels.shape


def test_disabled_adapter_is_left_out_in_training_mode(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    packed, base = adapted(folder), load_model(folder, dropout=0.0).train()
    PackedStacks(packed)
    PackedStacks(base)
    inputs = batch()
    inputs.pop("labels")
    with torch.autocast("cpu", torch.bfloat16):
        expected, enabled = base(**inputs).logits, packed(**inputs).logits
        with packed.disable_adapter():
            disabled = packed(**inputs).logits
    torch.testing.assert_close(disabled, expected, atol=0.5, rtol=0.0)  # bf16 rounds logits of 20 by up to 0.06
    assert not torch.allclose(enabled, expected, atol=5.0, rtol=0.0)


@pytest.mark.parametrize("model_type", ["mt5", "umt5"])
def test_other_t5_models_train_alike(tmp_path: Path, model_type: str) -> None:
    folder = save_tiny_t5(tmp_path / "base", model_type=model_type)
    plain, packed = adapted(folder), adapted(folder)
    PackedStacks(packed)
    assert similarity(gradients(packed)[1], gradients(plain)[1]) > 0.999


def test_whole_model_trains_every_norm(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    plain, packed = (load_model(folder, dropout=0.0).train() for _ in range(2))
    PackedStacks(packed)
    expected, measured = gradients(plain)[1], gradients(packed)[1]
    assert set(measured) == set(expected)
    assert similarity(measured, expected) > 0.999


def test_dropout_of_adapter_and_base_is_applied(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    losses = []
    for rate, base_rate in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.3)):
        torch.manual_seed(0)
        model = add_adapter(load_model(folder, dropout=base_rate), Lora(lora_dropout=rate)).train()
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(weight, 0.1)
        PackedStacks(model)
        losses.append(gradients(model)[0])
    assert len(set(losses)) == 3


def test_length_of_a_row_does_not_depend_on_padding(tmp_path: Path) -> None:
    model = adapted(save_tiny_t5(tmp_path / "base"))
    PackedStacks(model)
    inputs = batch()
    labels = inputs.pop("labels")
    inputs["decoder_attention_mask"] = labels != IGNORED
    wider = {name: torch.nn.functional.pad(tensor, (0, 8)) for name, tensor in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(**wider).logits, model(**inputs).logits, atol=0.1, rtol=0.02)


def test_encoder_keeps_nothing_for_gradients_if_only_the_decoder_is_adapted(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    keep_graph = []
    for target in ("EncDecAttention.q", "SelfAttention.q"):
        packed = adapted(folder, target_modules=[target])
        PackedStacks(packed)
        encoder = packed.get_base_model().get_encoder()
        inputs = {name: batch()[name] for name in ("input_ids", "attention_mask")}
        with torch.autocast("cpu", torch.bfloat16):
            keep_graph.append(encoder(**inputs).last_hidden_state.requires_grad)
    assert keep_graph == [False, True]

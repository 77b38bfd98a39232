"""Stacked weights and their optimizer against peft's weights and torch's AdamW, and their memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from lora_ft.models.adapters import add_adapter
from lora_ft.models.bases import Base, load_model, load_tokenizer
from lora_ft.multi_lora.batched_linear import MultiLoraLinear
from lora_ft.multi_lora.peft_adapter import Adapter, make_adapter
from lora_ft.multi_lora.stacked_adamw import AdamWStep, StackedAdamW
from lora_ft.multi_lora.stacked_weights import StackedWeights
from lora_ft.tasks.schema import Task
from lora_ft.training.prepared_data import PreparedData

LORAS: list[dict[str, Any]] = [
    {"r": 2, "lora_alpha": 4, "target_modules": "q,v"},
    {"r": 5, "lora_alpha": 4, "target_modules": "all-linear"},
    {"r": 3, "lora_alpha": 4, "target_modules": "q,wo"},
]


def stacked(tiny_base: Path, loras: list[dict[str, Any]]) -> tuple[Any, StackedWeights, list[dict[str, torch.Tensor]]]:
    """Return a model, its stack, and the loaded weights, which are random."""
    model, base, tokenizer = load_model(tiny_base), Base("tiny", tiny_base), load_tokenizer(tiny_base)
    adapters = []
    for lora in loras:
        content = {"name": "x", "prompt": "{text}", "data": {"train": "x"}, "lora": lora}
        data = PreparedData.of_rows(Task.model_validate(content), base, tokenizer, [])
        adapters.append(make_adapter(model, data, "cpu"))
    for _, weights in adapters:
        for weight in weights.values():
            weight.normal_()
    stack = StackedWeights(model, [adapter for adapter, _ in adapters])
    for number, (_, weights) in enumerate(adapters):
        stack.load(number, weights)
    return model, stack, [weights for _, weights in adapters]


def test_read_returns_the_loaded_weights(tiny_base: Path) -> None:
    _, stack, loaded = stacked(tiny_base, LORAS)
    for number, weights in enumerate(loaded):
        weights_read = stack.read(number)
        assert weights_read.keys() == weights.keys() and all(
            torch.equal(weights_read[name], weights[name]) for name in weights_read
        )


def test_kept_rows_keep_their_weights(tiny_base: Path) -> None:
    model, stack, loaded = stacked(tiny_base, LORAS)
    stack.keep([0, 2])
    assert stack.weights.shape[0] == 2
    for number, weights in enumerate([loaded[0], loaded[2]]):
        assert all(torch.equal(stack.read(number)[name], weights[name]) for name in weights)
    layer = model.get_submodule("encoder.block.0.layer.0.SelfAttention.q")
    assert layer.a.shape[0] == 2 and layer.a.data_ptr() == stack.weights.data_ptr()
    stack.keep([])
    assert stack.weights.shape[0] == 0


def test_remove_restores_the_base_layers(tiny_base: Path) -> None:
    model, stack, _ = stacked(tiny_base, LORAS)
    assert any(isinstance(module, MultiLoraLinear) for module in model.modules())
    stack.remove(model)
    assert not any(isinstance(module, MultiLoraLinear) for module in model.modules())
    assert model.state_dict().keys() == load_model(tiny_base).state_dict().keys()


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_step_equals_torchs_adamw(tiny_base: Path, max_norm: float) -> None:
    """Each row equals a separate torch.optim.AdamW, with its own rate, decay and LoRA+ ratio."""
    _, stack, _ = stacked(tiny_base, LORAS[:2])
    optimizer = StackedAdamW(stack)
    settings = [(0.01, 0.1, 1.0), (0.002, 0.0, 4.0)]
    alone = []
    for row, (rate, decay, ratio) in enumerate(settings):
        a = torch.nn.Parameter(stack.weights[row, : stack.split].clone())
        b = torch.nn.Parameter(stack.weights[row, stack.split :].clone())
        groups = [{"params": [a], "lr": rate}, {"params": [b], "lr": rate * ratio}]
        alone.append((a, b, torch.optim.AdamW(groups, weight_decay=decay)))
    for step in range(1, 6):
        stack.gradients.normal_()
        for row, (a, b, single) in enumerate(alone):
            a.grad, b.grad = (part.clone() for part in stack.gradients[row].tensor_split([stack.split]))
            if max_norm:
                torch.nn.utils.clip_grad_norm_([a, b], max_norm)
            single.step()
        optimizer.step([AdamWStep(step, rate, decay, max_norm, ratio) for rate, decay, ratio in settings])
    for row, (a, b, _) in enumerate(alone):
        torch.testing.assert_close(stack.weights[row], torch.cat([a, b]).detach(), rtol=2e-6, atol=1e-7)


def test_rows_are_independent(tiny_base: Path) -> None:
    _, stack, loaded = stacked(tiny_base, LORAS)
    stack.gradients[1] = float("nan")
    StackedAdamW(stack).step([AdamWStep(1, 0.01, 0.0, 1.0)] * 3)
    assert torch.isfinite(stack.weights[[0, 2]]).all() and not torch.isfinite(stack.weights[1]).all()
    assert all(torch.equal(stack.read(0)[name], weight) for name, weight in loaded[0].items())


def test_padding_stays_zero(tiny_base: Path) -> None:
    """Ranks are padded with zeros, which gradients, moments and decay leave unchanged."""
    model, stack, _ = stacked(tiny_base, LORAS)
    optimizer = StackedAdamW(stack)
    padded = stack.weights == 0
    ids = torch.randint(3, 60, (3, 8))
    for step in range(1, 4):
        stack.gradients.zero_()
        stack.route.send([(0, 1), (1, 1), (2, 1)], 3, torch.device("cpu"))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step([AdamWStep(step, 0.1, 0.1, 1.0)] * 3)
    assert padded.any() and not stack.weights[padded].any()


def test_hundred_adapters_of_flan_t5_base_need_less_than_3_gb() -> None:
    """Weights, gradients and both moments of r 16 on q and v, without the base."""
    config = {
        "d_model": 768,
        "d_ff": 2048,
        "num_layers": 12,
        "num_decoder_layers": 12,
        "num_heads": 12,
        "d_kv": 64,
        "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
    content = {"name": "x", "prompt": "{t}", "data": {"train": "x"}, "lora": {"r": 16, "target_modules": "q,v"}}
    lora = Task.model_validate(content).lora
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **config))
        adapted = add_adapter(model, lora)
    layers = [
        (name.removeprefix("base_model.model."), module)
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    ]
    shapes = {
        f"base_model.model.{name}.lora_{side}.weight": tuple(getattr(module, f"lora_{side}")["default"].weight.shape)
        for name, module in layers
        for side in "AB"
    }
    adapter = Adapter(None, shapes, {name: 1.0 for name, _ in layers})  # type: ignore[arg-type]
    assert adapter.parameters == 1_769_472
    stack = StackedWeights(adapted.unload(), [adapter] * 100)
    optimizer = StackedAdamW(stack)
    tensors = (stack.weights, stack.gradients, optimizer.means, optimizer.squares)
    assert all(tensor.is_meta for tensor in tensors)
    assert sum(tensor.nbytes for tensor in tensors) == 100 * 16 * 1_769_472 <= 3e9

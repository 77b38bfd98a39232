"""Every tensor is checked by numpy and torch readers, even those that transformers tolerates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lora_ft.core.errors import LoraFtError
from lora_ft.export.bundle.assemble import read_model
from lora_ft.export.checkpoint.tensor_checks import not_finite
from lora_ft.models.bases import load_model
from tests.export.family import CONFIGS, save_member
from tests.export.oracle import torch_model
from tests.tiny import save_tiny_t5

Q = "encoder.block.0.layer.0.SelfAttention.q.weight"
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
Tensors = dict[str, torch.Tensor]


def edit(folder: Path, change: Callable[[Tensors], Any]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def configure(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def refused(folder: Path) -> str:
    """Return the message with which both readers refuse a checkpoint."""
    with pytest.raises(LoraFtError) as exported:
        read_model(folder)
    with pytest.raises(LoraFtError) as loaded:
        load_model(folder)
    assert str(exported.value) == str(loaded.value)
    return str(exported.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_checkpoints_pass(tmp_path: Path, name: str) -> None:
    folder = save_member(tmp_path, name)
    read_model(folder)
    load_model(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_missing_tensor_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = save_member(tmp_path, name)
    whole = load_file(folder / "model.safetensors")
    for lost in whole:
        remaining = {key: tensor for key, tensor in whole.items() if key != lost}
        save_file(remaining, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(LoraFtError, match=rf"lacks {lost.replace('.', '[.]')}, which its config\.json requires"):
            read_model(folder)


@pytest.mark.parametrize("lost", [Q, "lm_head.weight", "shared.weight", "decoder.final_layer_norm.weight"])
def test_missing_tensor_is_refused_where_torch_loads(tmp_path: Path, lost: str) -> None:
    assert f"lacks {lost}" in refused(edit(save_tiny_t5(tmp_path), lambda tensors: tensors.pop(lost)))


def test_only_a_few_missing_tensors_are_listed(tmp_path: Path) -> None:
    message = refused(configure(save_tiny_t5(tmp_path), num_layers=4, num_decoder_layers=3))
    assert "lacks encoder.block.2.layer.0.SelfAttention.q.weight" in message and " more tensors" in message
    assert "num_layers" in message


def test_more_layers_than_the_config_has_are_refused(tmp_path: Path) -> None:
    assert "has encoder.block.1." in refused(configure(save_tiny_t5(tmp_path), num_layers=1))


@pytest.mark.parametrize(
    "key, value", [("d_model", 40), ("d_ff", 64), ("vocab_size", 96), ("num_heads", 4), ("d_kv", 4)]
)
def test_a_wrong_shape_is_refused_with_the_expected_shape(tmp_path: Path, key: str, value: int) -> None:
    message = refused(configure(save_tiny_t5(tmp_path), **{key: value}))
    assert "does not match config.json (got " in message and key in message


@pytest.mark.parametrize("prefix, remedy", [("module.", "DDP"), ("_orig_mod.", "torch.compile")])
def test_wrapped_models_are_refused_with_a_remedy(tmp_path: Path, prefix: str, remedy: str) -> None:
    def wrap(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors[name].clone()

    message = refused(edit(save_tiny_t5(tmp_path), wrap))
    assert f"has {prefix}" in message and remedy in message


def test_adapters_left_in_a_checkpoint_are_named(tmp_path: Path) -> None:
    name = Q.replace(".weight", ".lora_A.default.weight")
    message = refused(edit(save_tiny_t5(tmp_path), lambda tensors: tensors.update({name: torch.ones(2, 32)})))
    assert name in message and "merge the adapter" in message


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinite_weights_are_counted(tmp_path: Path, value: float, kind: torch.dtype) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[Q] = tensors[Q].to(kind)
        tensors[Q][3, 4] = value
        tensors[Q][5, 6] = value

    message = refused(edit(save_tiny_t5(tmp_path), spoil))
    assert f"2 of 768 values of {Q} are NaN or infinite" in message


def test_numbers_beyond_float32_are_infinite(tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[Q] = tensors[Q].double()
        tensors[Q][0, 0] = 1e39

    assert "1 of 768" in refused(edit(save_tiny_t5(tmp_path), spoil))


def test_large_numbers_whose_sum_overflows_are_finite() -> None:
    assert not_finite(np.full(1000, 3e38, np.float32)) == 0


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_finiteness_agrees_with_numpy(values: list[float]) -> None:
    array = np.array(values, np.float32)
    expected = int((~np.isfinite(array)).sum())
    assert not_finite(array) == expected
    rounded = torch.from_numpy(array).to(torch.bfloat16)
    bits = rounded.view(torch.int16).numpy().view(np.uint16)
    assert not_finite(bits) == int((~torch.isfinite(rounded.float())).sum())


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.uint8])
def test_quantized_weights_are_refused_by_their_format(tmp_path: Path, kind: torch.dtype) -> None:
    message = refused(edit(save_tiny_t5(tmp_path), lambda tensors: tensors.update({Q: tensors[Q].to(kind)})))
    assert f"{Q} is stored as " in message and "F64, F32, F16, BF16" in message


def test_the_unused_bias_is_ignored(tmp_path: Path) -> None:
    folder = edit(save_tiny_t5(tmp_path), lambda tensors: tensors.update({UNUSED: torch.full((8, 3), torch.nan)}))
    read_model(folder)
    load_model(folder)


def test_copies_of_the_embedding_are_accepted(tmp_path: Path) -> None:
    def copy(tensors: Tensors) -> None:
        for stack in ("encoder", "decoder"):
            tensors[f"{stack}.embed_tokens.weight"] = tensors["shared.weight"].clone()

    folder = edit(save_tiny_t5(tmp_path), copy)
    read_model(folder)
    load_model(folder)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_an_embedding_copy_that_differs_is_refused(tmp_path: Path, stack: str) -> None:
    name = f"{stack}.embed_tokens.weight"
    folder = edit(save_tiny_t5(tmp_path), lambda tensors: tensors.update({name: tensors["shared.weight"] + 1}))
    assert f"{name} differs from shared.weight" in refused(folder)


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_stored_under_an_alias_is_read(tmp_path: Path, name: str, tied: bool) -> None:
    folder = save_tiny_t5(tmp_path, tie_word_embeddings=tied)
    table = load_file(folder / "model.safetensors")["shared.weight"]
    edit(folder, lambda tensors: tensors.update({name: tensors.pop("shared.weight")}))
    assert np.array_equal(read_model(folder)[1]["shared.weight"], table.numpy())
    model = load_model(folder)
    for part in (model.shared, model.encoder.embed_tokens, model.decoder.embed_tokens):
        assert torch.equal(part.weight, table)
    assert torch.equal(model.lm_head.weight, table) == tied


def test_torch_and_numpy_read_the_same_weights(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path)
    model, (_, weights) = torch_model(folder), read_model(folder)
    for name, tensor in model.state_dict().items():
        if "embed_tokens" not in name:
            assert np.array_equal(weights[name], tensor.numpy())

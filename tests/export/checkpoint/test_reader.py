"""Checkpoints are read like in torch, and damaged or unsupported files are refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.export.checkpoint.reader import Checkpoint
from tests.export.oracle import torch_model
from tests.tiny import CONFIG, save_tiny_t5


def save(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def sharded(root: Path) -> Path:
    """Write a T5 in several shards with an index, as transformers does."""
    torch_model(save_tiny_t5(root / "whole", seed=3)).save_pretrained(root / "shards", max_shard_size="20KB")
    return root / "shards"


def bits(array: np.ndarray) -> np.ndarray:
    """Return the bits, which distinguish -0.0 from 0.0."""
    return np.ascontiguousarray(array).view(np.uint32)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (0, 4)])
def test_weights_equal_those_of_torch(tmp_path: Path, kind: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(len(shape))
    tensor = torch.randn(shape).to(kind)
    weight = Checkpoint(save(tmp_path, other=torch.randn(3).to(torch.float16), weight=tensor))["weight"]
    assert weight.dtype == np.float32
    assert weight.shape == shape == Checkpoint(tmp_path).shape("weight")
    assert np.array_equal(weight, tensor.float().numpy())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_every_16_bit_float_equals_that_of_torch(tmp_path: Path, kind: torch.dtype) -> None:
    tensor = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(kind)
    weight, expected = Checkpoint(save(tmp_path, weight=tensor))["weight"], tensor.float().numpy()
    number = ~np.isnan(expected)
    assert np.array_equal(np.isnan(weight), ~number)
    assert np.array_equal(bits(weight[number]), bits(expected[number]))


def test_infinities_signed_zeros_and_tiny_numbers_survive(tmp_path: Path) -> None:
    tensor = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-45, -1e-40, 3.4e38])
    assert np.array_equal(bits(Checkpoint(save(tmp_path, weight=tensor))["weight"]), bits(tensor.numpy()))


def test_shards_are_read_as_one_checkpoint(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    model, shards = torch_model(folder), list(folder.glob("*.safetensors"))
    assert len(shards) > 2
    weights = Checkpoint(folder)
    assert weights.config["d_model"] == CONFIG["d_model"]
    for shard in shards:
        for name, tensor in load_file(shard).items():
            assert name in weights
            assert np.array_equal(weights[name], tensor.numpy())
    assert np.array_equal(weights["lm_head.weight"], model.lm_head.weight.detach().numpy())


def test_all_weights_of_a_t5_are_read(checkpoint: Path) -> None:
    loaded = Checkpoint(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    assert "lm_head.weight" in weights
    assert all(np.array_equal(loaded[name], tensor.numpy()) for name, tensor in weights.items())


def test_a_missing_weight_is_refused_by_name(checkpoint: Path) -> None:
    weights = Checkpoint(checkpoint)
    assert "decoder.no.weight" not in weights
    for ask in (weights.__getitem__, weights.shape):
        with pytest.raises(LoraFtError, match=r"no weight named decoder\.no\.weight") as caught:
            ask("decoder.no.weight")
        assert caught.value.exit_code == 1


def test_a_checkpoint_has_no_calibration_statistics(checkpoint: Path) -> None:
    assert Checkpoint(checkpoint).peak("encoder.block.0.layer.0.SelfAttention.q") == 0


def test_integer_tensors_are_ignored(tmp_path: Path) -> None:
    weights = Checkpoint(save(tmp_path, positions=torch.arange(3), weight=torch.ones(2)))
    assert "positions" not in weights
    assert np.array_equal(weights["weight"], np.ones(2))


@pytest.mark.parametrize("size", [0, 4, 8, 60, -200, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    path = save_tiny_t5(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(LoraFtError, match=r"model\.safetensors is not a complete safetensors file") as caught:
        Checkpoint(tmp_path)
    assert caught.value.exit_code == 1


def test_a_file_without_its_data_is_refused(tmp_path: Path) -> None:
    path = save_tiny_t5(tmp_path) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])
    with pytest.raises(LoraFtError, match="is not a complete safetensors file"):
        Checkpoint(tmp_path)


def test_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    (save_tiny_t5(tmp_path) / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    with pytest.raises(LoraFtError, match=r"model\.safetensors is a Git LFS pointer.*git lfs pull"):
        Checkpoint(tmp_path)


def test_damaged_shard_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(LoraFtError, match=rf"{shard.name} is not a complete safetensors file"):
        Checkpoint(folder)


@pytest.mark.parametrize("case", ["a folder without config.json", "no folder"])
def test_a_missing_config_is_refused(tmp_path: Path, case: str) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    (folder / "config.json").unlink()
    if case == "no folder":
        folder = tmp_path / "none"
    with pytest.raises(UsageError, match=r"not a checkpoint: it has no config\.json") as caught:
        Checkpoint(folder)
    assert caught.value.exit_code == 2


def test_weights_are_read_from_safetensors_only(tmp_path: Path) -> None:
    proof = tmp_path / "proof"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (proof,)

    folder = save_tiny_t5(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(
        UsageError, match=r"only pytorch_model\.bin, and lora-ft never loads pickles; .*weights_only=True"
    ) as caught:
        Checkpoint(folder)
    assert caught.value.exit_code == 2
    assert not proof.exists()

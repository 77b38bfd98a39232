"""Weight files are selected like in transformers, and ambiguous sets are refused by name."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.export.checkpoint.reader import Checkpoint
from lora_ft.export.checkpoint.weight_files import INDEX, SINGLE, weight_files
from lora_ft.models.bases import find_base, load_model
from tests.tiny import save_tiny_t5


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return save_tiny_t5(tmp_path / "whole")


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    """Write three shards and their index."""
    folder = Path(shutil.copytree(whole, tmp_path / "shards"))
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(tensors)
    places: dict[str, str] = {}
    for at in range(3):
        file = f"model-{at + 1:05}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[at::3]}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names[at::3], file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def edit_index(folder: Path, **places: str) -> None:
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"] |= places
    (folder / INDEX).write_text(json.dumps(content))


def test_the_single_file_takes_precedence(whole: Path) -> None:
    before = {name: tensor.clone() for name, tensor in load_model(whole).state_dict().items()}
    for name in ("z_ema.safetensors", "a.safetensors", "model.fp16.safetensors", "model-2.safetensors"):
        save_file({key: torch.zeros_like(tensor) for key, tensor in load_file(whole / SINGLE).items()}, whole / name)
    assert weight_files(whole) == [whole / SINGLE]
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_model(whole).state_dict().items())
    assert torch.equal(torch.from_numpy(Checkpoint(whole)["lm_head.weight"].copy()), before["lm_head.weight"])


def test_only_indexed_shards_are_read(shards: Path, whole: Path) -> None:
    save_file({"shared.weight": torch.zeros(2)}, shards / "z_ema.safetensors")
    assert [file.name[:11] for file in weight_files(shards)] == ["model-00001", "model-00002", "model-00003"]
    expected, actual = load_model(whole).state_dict(), load_model(shards).state_dict()
    assert all(torch.equal(tensor, actual[name]) for name, tensor in expected.items())


def test_a_stale_index_is_ignored(whole: Path) -> None:
    (whole / INDEX).write_text(json.dumps({"weight_map": {"shared.weight": "model-00001-of-00002.safetensors"}}))
    assert weight_files(find_base(str(whole)).folder) == [whole / SINGLE]


def test_two_whole_sets_are_refused(shards: Path, whole: Path) -> None:
    shutil.copy(whole / SINGLE, shards)
    with pytest.raises(UsageError, match=r"has two sets of weights: model\.safetensors, and the shards"):
        weight_files(shards)


def test_index_may_name_the_single_file(whole: Path) -> None:
    names = load_file(whole / SINGLE)
    (whole / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, SINGLE)}))
    assert weight_files(whole) == [whole / SINGLE]


def test_a_missing_shard_is_refused_by_name(shards: Path) -> None:
    (shards / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(LoraFtError, match=r"lacks model-00002-of-00003\.safetensors, which .*index\.json names"):
        find_base(str(shards))


def test_shard_that_the_index_does_not_name_is_refused(shards: Path) -> None:
    save_file({"shared.weight": torch.zeros(80, 32)}, shards / "model-00004-of-00004.safetensors")
    with pytest.raises(LoraFtError, match=r"has the shard model-00004-of-00004\.safetensors"):
        find_base(str(shards))


def test_tensor_in_two_shards_is_refused(shards: Path) -> None:
    file = shards / "model-00003-of-00003.safetensors"
    tensors = load_file(file)
    twice = next(iter(load_file(shards / "model-00001-of-00003.safetensors").items()))
    save_file({**tensors, twice[0]: twice[1]}, file, metadata={"format": "pt"})
    with pytest.raises(LoraFtError, match=rf"model-00001-of.*model-00003-of.* both contain {twice[0]}"):
        find_base(str(shards))


def test_a_tensor_in_the_wrong_shard_is_refused(shards: Path) -> None:
    edit_index(shards, **{"lm_head.weight": "model-00001-of-00003.safetensors"})
    with pytest.raises(LoraFtError, match=r"lm_head\.weight"):
        find_base(str(shards))


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "pytorch_model.bin", ""])
def test_an_index_may_only_name_safetensors_in_its_folder(shards: Path, file: str) -> None:
    edit_index(shards, **{"lm_head.weight": file})
    with pytest.raises(LoraFtError, match="not a safetensors file in its folder"):
        weight_files(shards)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[", ""])
def test_damaged_index_is_refused(shards: Path, content: str) -> None:
    (shards / INDEX).write_text(content)
    with pytest.raises(LoraFtError, match=r"index\.json"):
        weight_files(shards)


def test_shards_without_their_index_are_refused(shards: Path) -> None:
    (shards / INDEX).unlink()
    with pytest.raises(UsageError, match=r"has no model\.safetensors\.index\.json, only model-00001"):
        weight_files(shards)


def test_a_misnamed_file_is_refused_with_the_expected_name(whole: Path) -> None:
    (whole / SINGLE).rename(whole / "model.fp16.safetensors")
    with pytest.raises(UsageError, match=r"only model\.fp16\.safetensors; rename .* to model\.safetensors"):
        find_base(str(whole))


def test_links_of_a_hub_cache_are_followed(whole: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    shutil.copytree(whole, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert weight_files(find_base(str(snapshot)).folder) == [snapshot / SINGLE]


def test_link_to_nothing_is_named(whole: Path) -> None:
    (whole / SINGLE).unlink()
    (whole / SINGLE).symlink_to("../blobs/0123")
    with pytest.raises(LoraFtError, match=r"model\.safetensors is a link to a missing file \(\.\./blobs/0123\)"):
        find_base(str(whole))


def test_recipe_for_pickles_makes_a_checkpoint_that_loads(whole: Path) -> None:
    expected = load_model(whole).state_dict()
    tensors = load_file(whole / SINGLE)
    tensors |= dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), tensors["shared.weight"])
    torch.save(tensors, whole / "pytorch_model.bin")
    (whole / SINGLE).unlink()
    with pytest.raises(UsageError) as caught:
        find_base(str(whole))
    command = shlex.split(caught.value.remedy.split(": ", 1)[1])
    subprocess.run([sys.executable, *command[1:]], check=True)
    actual = load_model(find_base(str(whole)).folder).state_dict()
    assert all(torch.equal(tensor, actual[name]) for name, tensor in expected.items())

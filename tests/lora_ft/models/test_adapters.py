"""Adapters are saved in peft's format, and an adapter that does not fit a base is refused before loading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import Linear
from transformers import T5ForConditionalGeneration

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.models.adapter_files import adapter_config
from lora_ft.models.adapters import add_adapter, check_fits, load_adapter, name_base
from lora_ft.models.bases import Base, load_model
from lora_ft.tasks.lora import Lora
from tests.tiny import save_tiny_t5

LORA = Lora.model_validate({"preset": "tiny"})
IDS = torch.tensor([[5, 9, 23, 1]])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, decoder_input_ids=torch.tensor([[0, 7, 8]])).logits


def new_adapter(base: Path, lora: Lora = LORA) -> PeftModel:
    """Return an adapter with nonzero B matrices, since peft initializes them with zeros."""
    model = add_adapter(load_model(base), lora, Base("someone/base", base)).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.fixture(scope="module")
def adapted(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, Path]:
    """Return the logits of an adapted model, and the folder of its adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    model = new_adapter(tiny_base)
    model.save_pretrained(folder)
    return logits(model), folder


@pytest.fixture
def copy(adapted: tuple[torch.Tensor, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapted[1], tmp_path / "copy"))


def test_new_adapter_keeps_logits_and_is_the_only_trained_part(tiny_base: Path) -> None:
    model = add_adapter(load_model(tiny_base), LORA)
    assert torch.equal(logits(model.eval()), logits(load_model(tiny_base)))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name and name.split(".lora_")[0].endswith((".q", ".v")) for name in trained)


def test_all_linear_adapts_every_layer_except_the_head(tiny_base: Path) -> None:
    model = add_adapter(load_model(tiny_base), Lora.model_validate({"preset": "default"}))
    layers = {name.split(".lora_")[0].rsplit(".", 1)[1] for name, p in model.named_parameters() if p.requires_grad}
    assert layers == {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}


def test_decoder_adapts_every_layer_of_the_decoder(tiny_base: Path, tmp_path: Path) -> None:
    base = load_model(tiny_base)
    expected = {name for name, module in base.named_modules() if "decoder." in name and isinstance(module, Linear)}
    model = add_adapter(base, Lora.model_validate({"target_modules": "decoder"}))
    trained = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert {name.removeprefix("base_model.model.") for name in trained} == expected
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(load_model(tiny_base), tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model.eval()))


def test_plain_peft_loads_a_saved_adapter(tiny_base: Path, adapted: tuple[torch.Tensor, Path]) -> None:
    expected, folder = adapted
    fresh = T5ForConditionalGeneration.from_pretrained(tiny_base, dtype=torch.float32)
    assert not torch.allclose(logits(fresh.eval()), expected)
    assert torch.equal(logits(PeftModel.from_pretrained(fresh, folder).eval()), expected)


def test_saved_adapter_is_loaded_in_evaluation_mode(tiny_base: Path, adapted: tuple[torch.Tensor, Path]) -> None:
    model = load_adapter(load_model(tiny_base), adapted[1])
    assert not model.training and torch.equal(logits(model), adapted[0])


def test_saved_adapter_has_the_settings_of_the_task(adapted: tuple[torch.Tensor, Path], tiny_base: Path) -> None:
    config = adapter_config(adapted[1])
    assert (config["r"], config["lora_alpha"], set(config["target_modules"])) == (8, 16, {"q", "v"})
    assert config["task_type"] == "SEQ_2_SEQ_LM" and config["base_model_name_or_path"] == str(tiny_base)
    assert {path.suffix for path in adapted[1].iterdir()} <= {".json", ".safetensors", ".md"}


def test_name_base_changes_only_the_name(copy: Path, tiny_base: Path) -> None:
    before = adapter_config(copy)
    name_base(copy, Base("google/flan-t5-small", tiny_base))
    assert adapter_config(copy) == before | {"base_model_name_or_path": "google/flan-t5-small"}


def test_unknown_layers_are_refused_with_a_list_of_layers(tiny_base: Path) -> None:
    lora = Lora.model_validate({"target_modules": "query,value"})
    with pytest.raises(UsageError) as caught:
        add_adapter(load_model(tiny_base), lora)
    assert "no linear layer 'query'" in caught.value.message
    assert caught.value.remedy == "use k, lm_head, o, q, v, wi_0, wi_1, wo"


def test_adapter_of_another_width_is_refused(adapted: tuple[torch.Tensor, Path], tmp_path: Path) -> None:
    wide = load_model(save_tiny_t5(tmp_path / "wide", d_model=40))
    for refuse in (check_fits, load_adapter):
        with pytest.raises(LoraFtError) as caught:
            refuse(wide, adapted[1])
        assert "is for another base" in caught.value.message
        assert "width 32" in caught.value.message and "40 in this base" in caught.value.message


def test_adapter_of_another_number_of_heads_is_refused(adapted: tuple[torch.Tensor, Path], tmp_path: Path) -> None:
    with pytest.raises(LoraFtError, match=r"has width 24 in the adapter and 32 in this base"):
        check_fits(load_model(save_tiny_t5(tmp_path / "heads", num_heads=4)), adapted[1])


def test_adapter_of_a_deeper_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    new_adapter(save_tiny_t5(tmp_path / "deep", num_layers=3)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(LoraFtError, match=r"this base has no layer encoder\.block\.2\.") as caught:
        check_fits(load_model(tiny_base), tmp_path / "adapter")
    assert str(tmp_path / "deep") in caught.value.remedy


def test_check_fits_accepts_a_fitting_adapter_and_keeps_the_model(
    tiny_base: Path, adapted: tuple[torch.Tensor, Path]
) -> None:
    model = load_model(tiny_base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_fits(model, adapted[1])
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_pickled_adapter_is_refused(copy: Path, tiny_base: Path) -> None:
    torch.save(load_file(copy / "adapter_model.safetensors"), copy / "adapter_model.bin")
    (copy / "adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"only adapter_model\.bin, and pickles are never loaded; .*weights_only"):
        load_adapter(load_model(tiny_base), copy)


def test_folder_without_an_adapter_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(UsageError, match=r"is not an adapter: it has no adapter_config\.json"):
        load_adapter(load_model(tiny_base), tmp_path)
    assert json.loads((tiny_base / "config.json").read_text(encoding="utf-8"))["model_type"] == "t5"

"""Adapters written by any version of peft are loaded and merged like peft does, or refused with a reason."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.models.adapter_files import find_adapter, lora_config, unknown_keys
from lora_ft.models.adapters import load_adapter, load_another, merge_adapter
from lora_ft.models.bases import load_model
from lora_ft.models.checkpoints import save_checkpoint
from tests.export.oracle import torch_model
from tests.tiny import save_tiny_t5

IDS, START = torch.tensor([[5, 9, 23, 1]]), torch.tensor([[0, 7, 8]])
WEIGHTS = "adapter_model.safetensors"

# Common configs of peft, each of which becomes an adapter of a T5.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q", "v"]},
    "all linear": {"target_modules": "all-linear"},
    "default targets": {},
    "a pattern": {"target_modules": r".*decoder.*(SelfAttention|EncDecAttention)\.(q|v)$"},
    "head saved": {"target_modules": ["q", "v"], "modules_to_save": ["lm_head"]},
    "head targeted": {"target_modules": ["q", "lm_head"]},
    "norms saved": {"target_modules": ["q"], "modules_to_save": ["final_layer_norm", "layer_norm"]},
    "all biases": {"target_modules": ["q", "v"], "bias": "all"},
    "biases of LoRA": {"target_modules": ["q", "v"], "bias": "lora_only"},
    "ranks by layer": {"target_modules": ["q", "v"], "rank_pattern": {"v": 2}, "alpha_pattern": {"encoder.*q": 3}},
    "rank-stabilized": {"target_modules": ["wi_0", "wo"], "use_rslora": True},
    "dora": {"target_modules": ["q", "wo"], "use_dora": True},
    "some layers": {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": "block"},
    "without some": {"target_modules": ["q", "v"], "exclude_modules": ".*encoder.*"},
    "no task": {"target_modules": ["q", "v"], "task_type": None},
    "for a causal model": {"target_modules": ["q", "v"], "task_type": "CAUSAL_LM"},
}


def make(base: Path, folder: Path, **config: Any) -> Path:
    """Write an adapter with peft, with noise on every tensor."""
    torch.manual_seed(3)
    model = T5ForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    config = {"task_type": "SEQ_2_SEQ_LM", "r": 4, "lora_alpha": 6} | config
    adapted = peft.get_peft_model(model, peft.LoraConfig(**config))
    for parameter in (p for p in adapted.parameters() if p.requires_grad):
        parameter.data += torch.randn_like(parameter) * 0.3
    adapted.save_pretrained(folder)
    return folder


def by_peft(base: Path, folder: Path) -> torch.Tensor:
    """Return the logits of a base with an adapter that peft loaded."""
    model = T5ForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    return logits(peft.PeftModel.from_pretrained(model, folder).eval())


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, decoder_input_ids=START).logits


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))


@pytest.fixture
def plain(tiny_base: Path, tmp_path: Path) -> Path:
    return make(tiny_base, tmp_path / "plain", target_modules=["q", "v"])


def refused(base: Path, folder: Path) -> str:
    with pytest.raises(LoraFtError) as caught:
        load_adapter(load_model(base), folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_a_peft_adapter_equal_pefts(tmp_path: Path, kind: str, tied: bool) -> None:
    base = save_tiny_t5(tmp_path / "base", tie_word_embeddings=tied)
    folder = make(base, tmp_path / "adapter", **KINDS[kind])
    expected = by_peft(base, folder)
    assert not torch.allclose(expected, logits(torch_model(base)), atol=1e-3)
    adapted = load_adapter(load_model(base), folder)
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-4, atol=1e-4)
    merged = merge_adapter(adapted)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    save_checkpoint(merged, base, tmp_path / "merged")
    torch.testing.assert_close(logits(torch_model(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-4)


def test_second_adapter_is_loaded_onto_the_same_base(tiny_base: Path, plain: Path, tmp_path: Path) -> None:
    second = make(tiny_base, tmp_path / "second", target_modules=["k"], r=2)
    adapted = load_adapter(load_model(tiny_base), plain)
    load_another(adapted, second, "second")
    torch.testing.assert_close(logits(adapted), by_peft(tiny_base, plain))
    adapted.set_adapter("second")
    torch.testing.assert_close(logits(adapted), by_peft(tiny_base, second))
    rewrite(second, lambda tensors: tensors.popitem())
    with pytest.raises(LoraFtError, match=r"is missing base_model\.model\."):
        load_another(adapted, second, "again")


def test_config_of_peft_0_3_is_read(tiny_base: Path, plain: Path) -> None:
    expected = by_peft(tiny_base, plain)
    old = {
        "base_model_name_or_path": "google/flan-t5-small",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 6,
        "lora_dropout": 0.1,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["q", "v"],
        "task_type": "SEQ_2_SEQ_LM",
    }
    (plain / "adapter_config.json").write_text(json.dumps(old))
    torch.testing.assert_close(logits(load_adapter(load_model(tiny_base), plain)), expected)
    assert unknown_keys(plain) == []


def test_config_of_a_later_peft_is_read_and_its_new_keys_are_named(tiny_base: Path, plain: Path) -> None:
    expected = by_peft(tiny_base, plain)
    configure(plain, peft_version="3.1.0", use_hyper_lora=True, quantum_config=None, new_list=[], mode="fast")
    torch.testing.assert_close(logits(load_adapter(load_model(tiny_base), plain)), expected)
    assert unknown_keys(plain) == ["use_hyper_lora", "mode"]


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_missing_matrices_are_named(tiny_base: Path, plain: Path, side: str) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if side in name]:
            del tensors[name]

    rewrite(plain, drop)
    message = refused(tiny_base, plain)
    assert "is missing base_model.model." in message and side in message and "more tensors" in message


def test_each_missing_tensor_is_named(tiny_base: Path, plain: Path) -> None:
    whole = load_file(plain / WEIGHTS)
    for lost in list(whole)[::5]:
        save_file({name: tensor for name, tensor in whole.items() if name != lost}, plain / WEIGHTS)
        assert f"is missing {lost}, " in refused(tiny_base, plain)


def test_adapter_without_tensors_is_refused(tiny_base: Path, plain: Path) -> None:
    save_file({}, plain / WEIGHTS)
    assert "contains no adapter tensors" in refused(tiny_base, plain)


def test_tensors_that_the_config_does_not_require_are_refused(tiny_base: Path, plain: Path) -> None:
    configure(plain, target_modules=["q"])
    message = refused(tiny_base, plain)
    assert "contains base_model.model." in message and ".v.lora_" in message


def test_layers_that_the_base_lacks_are_refused(tiny_base: Path, plain: Path) -> None:
    name = "base_model.model.encoder.block.7.layer.0.SelfAttention.q.lora_A.weight"
    rewrite(plain, lambda tensors: tensors.update({name: torch.ones(4, 32)}))
    assert "is for another base: this base has no layer encoder.block.7.layer.0.SelfAttention.q" in refused(
        tiny_base, plain
    )


def test_rank_that_differs_from_the_config_is_refused(tiny_base: Path, plain: Path) -> None:
    configure(plain, r=8)
    message = refused(tiny_base, plain)
    assert "has shape 4 x 32, but adapter_config.json requires 8 x 32" in message and "r, rank_pattern" in message


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinite_values_are_refused(tiny_base: Path, plain: Path, value: float, dtype: torch.dtype) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        name = sorted(tensors)[3]
        tensors[name] = tensors[name].to(dtype)
        tensors[name][0, 0] = value

    rewrite(plain, spoil)
    assert "1 of " in refused(tiny_base, plain) and "NaN or infinite" in refused(tiny_base, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adapters_are_loaded(tiny_base: Path, plain: Path, dtype: torch.dtype) -> None:
    rewrite(plain, lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    torch.testing.assert_close(logits(load_adapter(load_model(tiny_base), plain)), by_peft(tiny_base, plain))


def test_damaged_file_is_refused_with_its_path(tiny_base: Path, plain: Path) -> None:
    (plain / WEIGHTS).write_bytes((plain / WEIGHTS).read_bytes()[:-3])
    assert f"{plain / WEIGHTS} is not a complete safetensors file" in refused(tiny_base, plain)


def test_symlinks_of_a_hub_cache_are_followed(tiny_base: Path, plain: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in plain.iterdir():
        (snapshot / file.name).symlink_to(file)
    load_adapter(load_model(tiny_base), snapshot)
    (plain / WEIGHTS).unlink()
    assert "link to a missing file" in refused(tiny_base, snapshot)


def test_printed_command_converts_a_pickled_adapter(tiny_base: Path, plain: Path) -> None:
    expected = by_peft(tiny_base, plain)
    torch.save(load_file(plain / WEIGHTS), plain / "adapter_model.bin")
    (plain / WEIGHTS).unlink()
    message = refused(tiny_base, plain)
    command = shlex.split(message.split("running its code: ", 1)[1])
    subprocess.run([sys.executable, *command[1:]], check=True)
    torch.testing.assert_close(logits(load_adapter(load_model(tiny_base), plain)), expected)


OTHERS: dict[str, peft.PeftConfig] = {
    "IA3": peft.IA3Config(task_type="SEQ_2_SEQ_LM", target_modules=["k", "v", "wo"], feedforward_modules=["wo"]),
    "PREFIX_TUNING": peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4),
    "PROMPT_TUNING": peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4),
    "LOHA": peft.LoHaConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q"]),
    "LN_TUNING": peft.LNTuningConfig(task_type="SEQ_2_SEQ_LM", target_modules=["final_layer_norm"]),
    "ADALORA": peft.AdaLoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q"], total_step=10),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_methods_are_refused_by_name(tiny_base: Path, tmp_path: Path, kind: str) -> None:
    model = T5ForConditionalGeneration.from_pretrained(tiny_base, dtype=torch.float32)
    peft.get_peft_model(model, OTHERS[kind]).save_pretrained(tmp_path / "adapter")
    message = refused(tiny_base, tmp_path / "adapter")
    assert f"is an adapter of type {kind} (supported: LORA)" in message and "another base" not in message
    assert ("merge_and_unload" in message) == (kind not in ("PREFIX_TUNING", "PROMPT_TUNING"))  # these cannot be merged


@pytest.mark.parametrize(
    "config, named",
    [
        ({"target_modules": ["shared", "q"]}, "has LoRA on shared (got Embedding"),
        ({"target_modules": ["q"], "modules_to_save": ["shared"]}, "trains the whole embedding"),
        ({"target_modules": ["q"], "modules_to_save": ["decoder"]}, "trains the whole embedding"),
        ({"target_modules": ["q"], "lora_bias": True}, "uses lora_bias of peft"),
        ({"target_modules": ["q"], "init_lora_weights": "pissa_niter_2"}, "pissa_niter_2 changed"),
        ({"trainable_token_indices": [5]}, "trains tokens of shared, but those of lm_head, shared"),
        ({"trainable_token_indices": {"embed_tokens": [5]}}, "trains tokens of embed_tokens, but those of lm_head"),
    ],
)
def test_parts_that_cannot_be_merged_are_refused_by_name(
    tiny_base: Path, tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    assert named in refused(tiny_base, make(tiny_base, tmp_path / "adapter", **config))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_change_of_the_base_is_repeated(tiny_base: Path, tmp_path: Path, init: str) -> None:
    folder = make(tiny_base, tmp_path / "adapter", target_modules=["q", "v"], init_lora_weights=init)
    loaded = load_adapter(load_model(tiny_base), folder)
    assert torch.allclose(logits(merge_adapter(loaded)), by_peft(tiny_base, folder), atol=1e-4)


def test_trained_tokens_of_a_tied_base_are_those_of_peft(tmp_path: Path) -> None:
    base = save_tiny_t5(tmp_path / "base", tie_word_embeddings=True)
    folder = make(base, tmp_path / "adapter", target_modules=["q"], trainable_token_indices=[5, 7])
    assert torch.allclose(logits(load_adapter(load_model(base), folder)), by_peft(base, folder), atol=1e-4)
    configure(folder, trainable_token_indices={"decoder.embed_tokens": [5, 7]})
    assert "trains tokens of decoder.embed_tokens, but those of shared" in refused(base, folder)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"target_modules": ["q", "layer_norm"]}, "has LoRA on encoder.block.0.layer.0.layer_norm (got T5LayerNorm"),
        ({"target_modules": ["embed_tokens"]}, "has LoRA on encoder.embed_tokens (got Embedding"),
        ({"target_modules": ["no_such_layer"]}, "peft cannot load the adapter"),
        ({"task_type": "SEQ_CLS"}, "was trained for 'SEQ_CLS'"),
        ({"task_type": 5}, "was trained for 5"),
        ({"peft_type": None}, "adapter without a peft_type"),
        ({"peft_type": "NEW_IN_2030"}, "of type NEW_IN_2030"),
        ({"peft_type": ["LORA"]}, "supported: LORA"),
        ({"r": 0}, "r is not a positive integer (got 0)"),
        ({"r": "4"}, "r is not a positive integer (got '4')"),
        ({"lora_alpha": [1]}, "lora_alpha is not a number"),
        ({"target_modules": {"q": 1}}, "target_modules is not a name or a list of names"),
        ({"target_modules": [1]}, "target_modules is not a name or a list of names"),
        ({"target_modules": "("}, "the pattern '(' is not a regular expression"),
        ({"target_modules": "(.*)*(.*)*(.*)*(.*)*(.*)*x"}, "cannot be matched within"),
        ({"rank_pattern": {"(a|a|.)*(a|.)*(.|.)*!": 3}}, "cannot be matched within"),
        ({"rank_pattern": [1]}, "rank_pattern is not an object with numbers"),
        ({"trainable_token_indices": [80]}, "trains token 80, but this base has only 80 rows"),
        ({"init_lora_weights": "no such"}, "peft cannot"),
        ({"megatron_config": {"a": 1}}, "uses megatron_config"),
        ({"layer_replication": [[0, 1]]}, "uses layer_replication"),
    ],
)
def test_unsupported_configs_are_refused_in_one_line(
    tiny_base: Path, plain: Path, changes: dict[str, Any], named: str
) -> None:
    configure(plain, **changes)
    assert named in refused(tiny_base, plain)


def test_copies_of_the_bases_embedding_are_ignored(tiny_base: Path, tmp_path: Path) -> None:
    model = T5ForConditionalGeneration.from_pretrained(tiny_base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q"]))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    assert "base_model.model.shared.weight" in load_file(tmp_path / "adapter" / WEIGHTS)
    torch.testing.assert_close(
        logits(load_adapter(load_model(tiny_base), tmp_path / "adapter")), logits(adapted.eval())
    )


def test_adapter_is_found_in_the_folders_of_peft_and_trainer(plain: Path, tmp_path: Path) -> None:
    assert find_adapter(plain) == plain
    trainer = tmp_path / "trainer"
    trainer.mkdir()
    plain.rename(trainer / "checkpoint-500")
    assert find_adapter(trainer) == trainer / "checkpoint-500"
    (trainer / "checkpoint-1000").mkdir()
    assert find_adapter(trainer) == trainer / "checkpoint-500"
    (trainer / "checkpoint-1000" / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"holds 2 adapters \(checkpoint-1000, checkpoint-500\); pass one"):
        find_adapter(trainer)
    assert find_adapter(tmp_path / "none") is None


def test_task_type_is_set_regardless_of_the_stored_config(plain: Path) -> None:
    configure(plain, task_type=None, auto_mapping={"base_model_class": "T5", "parent_library": "x"})
    assert lora_config(plain).task_type == "SEQ_2_SEQ_LM"

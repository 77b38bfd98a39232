"""A shrunk base keeps the tensors of its layers, and trains, merges, exports and answers as any base does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from lora_ft.cli import run as lora_ft
from lora_ft.core.errors import BaseMismatchError, UsageError
from lora_ft.export.precision import parse
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.kernel_choice import NEAR, difference
from lora_ft.export_onnx import export_onnx
from lora_ft.merge import merge
from lora_ft.models.loading import load
from lora_ft.shrink import shrink
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from tests.export.oracle import make_bundle, redraw
from tests.tiny import save_tiny_t5

TEXTS = ["v abc", "v longer words, and more", "so"]
SIZES = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_heads": 4}  # sizes that the kernel supports


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base with five layers in each stack."""
    folder = tmp_path_factory.mktemp("deep") / "base"
    return redraw(save_tiny_t5(folder, num_layers=5, num_decoder_layers=5, **SIZES), seed=4, end=1.5)


@pytest.fixture(scope="module")
def small(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `deep` with three decoder layers."""
    out = tmp_path_factory.mktemp("small") / "base"
    assert shrink(deep, out, decoder_layers=3).decoder_layers == [0, 2, 4]
    return out


def test_a_shrunk_base_has_the_tensors_of_the_kept_layers(deep: Path, small: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (deep, small))
    numbers = {"0": "0", "1": "2", "2": "4"}
    for name, tensor in after.items():
        parts = name.split(".")
        if name.startswith("decoder.block."):
            parts[2] = numbers[parts[2]]
        assert torch.equal(tensor, before[".".join(parts)])
    assert sum(name.startswith("encoder.block.") for name in after) == sum(
        name.startswith("encoder.block.") for name in before
    )
    assert "lm_head.weight" in after
    config = json.loads((small / "config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"], config["tie_word_embeddings"]) == (5, 3, False)
    for name in ("tokenizer.json", "generation_config.json"):
        assert json.loads((small / name).read_text()).items() >= json.loads((deep / name).read_text()).items()


def test_a_shrunk_base_answers_as_its_layers_in_torch(deep: Path, small: Path) -> None:
    inputs = {"input_ids": torch.tensor([[5, 9, 14, 1]]), "decoder_input_ids": torch.tensor([[0, 7, 8]])}
    whole, part = (T5ForConditionalGeneration.from_pretrained(folder).eval() for folder in (deep, small))
    skipped = whole.decoder.block
    whole.decoder.block = torch.nn.ModuleList(skipped[i] for i in (0, 2, 4))
    with torch.inference_mode():
        assert torch.equal(whole(**inputs, use_cache=False).logits, part(**inputs, use_cache=False).logits)


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ({"decoder_layers": 1}, ([0, 1, 2, 3, 4], [0])),
        ({"encoder_layers": 4, "decoder_layers": 2}, ([0, 1, 3, 4], [0, 4])),
    ],
)
def test_first_and_last_layers_are_kept(
    layers: dict[str, int], kept: tuple[list[int], list[int]], deep: Path, tmp_path: Path
) -> None:
    shrunk = shrink(deep, tmp_path / "out", **layers)
    assert (shrunk.encoder_layers, shrunk.decoder_layers) == kept
    assert shrunk.parameters < shrunk.parameters_before
    assert load(tmp_path / "out").generate(["abc"], max_new_tokens=3)


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ({"decoder_layers": 0}, "out of range"),
        ({"decoder_layers": 6}, "the base has 5"),
        ({"decoder_layers": 5}, "every layer"),
        ({"encoder_layers": 2}, "more decoder layers than encoder layers"),
        ({}, "every layer"),
    ],
)
def test_useless_numbers_of_layers_are_refused(
    layers: dict[str, int], problem: str, deep: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=problem):
        shrink(deep, tmp_path / "out", **layers)
    assert not (tmp_path / "out").exists()


def test_a_shrunk_base_trains_merges_exports_and_answers_as_torch_does(
    small: Path, make_task: Callable[..., Path], tmp_path: Path
) -> None:
    task = make_task(base=str(small), train={"metric_for_best_model": "loss", "num_train_epochs": 1})
    run = train(load_task(task), tmp_path / "run")
    merge(run, tmp_path / "merged")
    export_onnx(run, tmp_path / "bundle", verify_rows=4, score_rows=4)
    expected = load(tmp_path / "merged").generate(TEXTS)
    assert load(tmp_path / "bundle").generate(TEXTS) == expected == load(run.folder).generate(TEXTS)


def test_the_kernel_takes_the_steps_of_a_shrunk_base(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lora_ft_kernels", reason="lora-ft-kernels is not installed; see `make kernels`")
    monkeypatch.delenv("LORA_FT_KERNELS")
    make_bundle(small, tmp_path / "bundle", precisions=[parse("int8")])
    kernel = Generator.load(tmp_path / "bundle")
    if "lacks" in kernel.step_engine:
        pytest.skip(kernel.step_engine)
    assert kernel.step_engine == "kernel (avx512)"
    graphs = Generator.load(tmp_path / "bundle", kernel=False)
    ids, mask = np.random.default_rng(0).integers(2, 60, (3, 9)), np.ones((3, 9), np.int64)
    logits = [
        each.model.logits(each.model.encode(ids, mask), each.model.cache(3), ids[:, :5]).copy()
        for each in (kernel, graphs)
    ]
    assert difference(*logits) < NEAR


def test_an_adapter_of_a_shrunk_base_is_refused_on_the_whole_one(
    small: Path, deep: Path, make_task: Callable[..., Path], tmp_path: Path
) -> None:
    run = train(load_task(make_task(base=str(small), train={"metric_for_best_model": "loss"})), tmp_path / "run")
    with pytest.raises(BaseMismatchError, match="num_decoder_layers 3"):
        merge(run, tmp_path / "merged", base=str(deep))


def test_command_prints_the_kept_layers(deep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["shrink", str(deep), "--decoder-layers", "2", "--out", str(tmp_path / "out"), "--json"]
    assert lora_ft(command) == 0
    assert json.loads(capsys.readouterr().out)["decoder_layers"] == [0, 4]
    assert lora_ft([*command, "--overwrite"]) == 0  # it recognizes its own folder
    assert lora_ft(command) == 2

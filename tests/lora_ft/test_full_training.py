"""Full training keeps what its base says about generation and its head, and refuses settings of adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lora_ft.core.errors import UsageError
from lora_ft.export_onnx import export_onnx
from lora_ft.models.bases import load_model
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from tests.tiny import save_tiny_t5

MakeTask = Callable[..., Path]


def test_full_run_keeps_its_generation_settings(make_task: MakeTask, tmp_path: Path) -> None:
    """transformers fills in its defaults in evaluation, and its `max_length` causes a warning per batch."""
    task = make_task(method="full", train={"num_train_epochs": 1, "metric_for_best_model": "rouge1"})
    run = train(load_task(task), tmp_path / "run")
    settings = json.loads((run.trained / "generation_config.json").read_text())
    del settings["transformers_version"]
    special = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    assert {name: value for name, value in settings.items() if value is not None} == {
        **special,
        "max_new_tokens": run.task.max_new_tokens,
    }


def test_full_run_keeps_settings_of_its_base_that_transformers_would_not_save(
    make_task: MakeTask, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    settings = json.loads((base / "generation_config.json").read_text()) | {"temperature": 0.7}  # without do_sample
    (base / "generation_config.json").write_text(json.dumps(settings))
    run = train(load_task(make_task(method="full", base=str(base), train={"num_train_epochs": 1})), tmp_path / "run")
    assert json.loads((run.trained / "generation_config.json").read_text())["temperature"] == 0.7


def test_tied_head_stays_tied_in_full_training(make_task: MakeTask, tmp_path: Path) -> None:
    tied = save_tiny_t5(tmp_path / "tied", tie_word_embeddings=True)
    run = train(load_task(make_task(method="full", base=str(tied), train={"num_train_epochs": 1})), tmp_path / "run")
    assert "lm_head.weight" not in load_file(run.trained / "model.safetensors")
    reloaded = load_model(run.trained)
    assert reloaded.lm_head.weight is reloaded.shared.weight
    assert json.loads((run.trained / "config.json").read_text())["scale_decoder_outputs"] is True
    assert export_onnx(str(run.folder), tmp_path / "bundle", verify_rows=2).parity.passed


@pytest.mark.parametrize("key", ["quantization=4bit", "loraplus_lr_ratio=16", "trainable_token_indices=[4]"])
def test_settings_that_a_full_run_would_ignore_are_refused(key: str, make_task: MakeTask) -> None:
    with pytest.raises(UsageError, match=f"{key.partition('=')[0]} has no effect with method full"):
        load_task(make_task(method="full"), [f"lora.{key}"])

"""Tests on real weights and rows, for behavior that a random model cannot show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_ft.export.runtime import Generator
from lora_ft.export_onnx import export_onnx
from lora_ft.generate import generate
from lora_ft.models.bases import find_base
from lora_ft.models.loading import load
from lora_ft.tasks.files import load_task
from lora_ft.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx("offline", tmp_path_factory.mktemp("offline") / "bundle").out


def test_the_offline_base_exports_and_answers(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["parity"]["identical_rows"] == manifest["parity"]["rows"] == 6
    assert "Haus" in Generator.load(bundle).generate(["translate English to German: The house is small."])[0]


def test_real_dialogues_of_unequal_length_give_pytorchs_text(bundle: Path, shared_data: Path) -> None:
    with open(shared_data / "dialogsum" / "dev.jsonl", encoding="utf-8") as file:
        prompts = [f"Summarize: {json.loads(line)['input']}" for line, _ in zip(file, range(12), strict=False)]
    answers = [generate(load(name), prompts, {"max_new_tokens": 24}, raw=True) for name in ("offline", str(bundle))]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 6


def test_a_few_steps_on_the_real_base_lower_the_loss(tmp_path: Path) -> None:
    overrides = ["base=offline", "train.max_steps=12", "train.logging_steps=1", "data.validation=null"]
    run = train(load_task("dialogue-summary", overrides), tmp_path / "run")
    losses = [json.loads(line).get("loss") for line in (run.folder / "log.jsonl").read_text().splitlines()]
    logged = [loss for loss in losses if loss is not None]
    assert len(logged) == 12 and sum(logged[-4:]) < 0.8 * sum(logged[:4])
    assert "not the untouched google/flan-t5-small" in (run.folder / "README.md").read_text()


def test_the_head_of_the_offline_base_is_its_own() -> None:
    weights = load_file(find_base("offline").folder / "model.safetensors")
    assert not torch.allclose(weights["lm_head.weight"], weights["shared.weight"])

"""Merging works in float32, only on the right base, and stores FLAN's untied head intact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.merge import merge
from lora_ft.runs.run import Run
from tests.tiny import save_tiny_t5

INPUTS = {"input_ids": torch.tensor([[5, 9, 14, 1]]), "decoder_input_ids": torch.tensor([[0, 7, 8]])}


@torch.inference_mode()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(**INPUTS).logits


def test_merged_checkpoint_equals_base_and_adapter(tiny_run: Run, tiny_base: Path, tmp_path: Path) -> None:
    report = merge(tiny_run, tmp_path / "merged")
    adapted = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(tiny_base), str(tiny_run.adapter))
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-4)
    assert not torch.allclose(logits(merged), logits(T5ForConditionalGeneration.from_pretrained(tiny_base)), atol=1e-2)
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert record["largest_logit_difference"] == report.difference < 1e-3
    assert report.rows == 4  # rows of the task


def test_head_stays_untied_through_save_and_reload(tiny_run: Run, tiny_base: Path, tmp_path: Path) -> None:
    """transformers PR#47620: version 5 saves FLAN's config as tied, and version 4 then drops the head."""
    merge(tiny_run, tmp_path / "merged")
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(stored["lm_head.weight"], load_file(tiny_base / "model.safetensors")["lm_head.weight"])
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    reloaded = T5ForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert not torch.equal(reloaded.lm_head.weight, reloaded.shared.weight)
    again = tmp_path / "again"
    reloaded.config.tie_word_embeddings = False
    reloaded.save_pretrained(again)
    assert torch.equal(logits(T5ForConditionalGeneration.from_pretrained(again)), logits(reloaded))


def test_bf16_is_cast_once_after_the_merge(tiny_run: Run, tmp_path: Path) -> None:
    merge(tiny_run, tmp_path / "fp32")
    merge(tiny_run, tmp_path / "bf16", dtype="bf16")
    full, half = (load_file(tmp_path / name / "model.safetensors") for name in ("fp32", "bf16"))
    assert all(torch.equal(half[name], full[name].to(torch.bfloat16)) for name in full)


@pytest.mark.parametrize(("change", "named"), [({"d_model": 40}, "d_model"), ({"vocab_size": 90}, "vocab_size")])
def test_base_of_other_dimensions_is_refused(change: dict[str, int], named: str, tiny_run: Run, tmp_path: Path) -> None:
    base = save_tiny_t5(tmp_path / "other", **change)
    with pytest.raises(LoraFtError, match=named):
        merge(tiny_run, tmp_path / "merged", base=str(base))
    assert not (tmp_path / "merged").exists()


def test_adapter_of_another_base_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for path in tiny_run.folder.rglob("*"):
        target = folder / path.relative_to(tiny_run.folder)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    (folder / "adapter" / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "google/flan-t5-base"})
    )
    with pytest.raises(LoraFtError, match="was trained on 'google/flan-t5-base'"):
        merge(Run(folder), tmp_path / "merged")


def test_adapter_with_overflowing_weights_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = {name: torch.full_like(tensor, 1e18) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(LoraFtError, match="NaN or infinite logits, since some of its weights are too large"):
        merge(Run(folder), tmp_path / "merged")


def test_existing_folder_is_kept_without_overwrite(tiny_run: Run, tmp_path: Path) -> None:
    merge(tiny_run, tmp_path / "merged")
    with pytest.raises(UsageError, match="already exists"):
        merge(tiny_run, tmp_path / "merged")
    merge(tiny_run, tmp_path / "merged", overwrite=True)

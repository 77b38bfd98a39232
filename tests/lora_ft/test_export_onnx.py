"""Exports of runs and checkpoints are verified on the task's rows, and published completely or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from safetensors.torch import load_file, save_file

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.export.runtime import Generator
from lora_ft.export_onnx import export_onnx
from lora_ft.generate import generate
from lora_ft.merge import merge
from lora_ft.models.loading import load
from lora_ft.runs.run import Run
from tests.tiny import save_tiny_t5


def test_manifest_of_a_run_records_its_origin(tiny_run: Run, tiny_base: Path, tmp_path: Path) -> None:
    exported = export_onnx(str(tiny_run.folder), tmp_path / "bundle", verify_rows=5)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert (manifest["base"], manifest["adapter"], manifest["precision"]) == (str(tiny_base), "tiny", "fp32")
    assert manifest["parity"]["rows"] == manifest["parity"]["identical_rows"] == exported.parity.rows == 5
    assert manifest["parity"]["largest_difference"] <= 1e-3
    assert {"torch", "transformers", "peft", "onnxruntime"} <= manifest["versions"].keys()
    assert set(manifest["files"]) | {"manifest.json", "README.md"} == {
        path.name for path in (tmp_path / "bundle").iterdir()
    }


def test_phrases_of_training_answers_are_exported_on_request(tiny_run: Run, tiny_base: Path, tmp_path: Path) -> None:
    for drafts in (True, False):
        export_onnx(str(tiny_run.folder), tmp_path / "bundle", verify_rows=1, drafts=drafts, overwrite=True)
        assert (tmp_path / "bundle" / "phrases.npy").exists() is drafts
    with pytest.raises(UsageError, match="training rows of a task"):
        export_onnx(str(tiny_base), tmp_path / "other", verify_rows=1, drafts=True)
    with pytest.raises(UsageError, match="--layout bundle"):
        export_onnx(str(tiny_run.folder), tmp_path / "other", drafts=True, layout="single")
    assert not (tmp_path / "other").exists()


def test_graphs_contain_task_license_and_scores_but_no_local_path(
    tiny_run: Run, tiny_base: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    task = yaml.safe_load((run / "task.yaml").read_text(encoding="utf-8"))
    card = {"license": "cc-by-4.0", "datasets": ["user/rows"]}
    (run / "task.yaml").write_text(yaml.safe_dump(task | {"card": card}), encoding="utf-8")
    export_onnx(str(run), tmp_path / "bundle", verify_rows=1)
    for graph in (tmp_path / "bundle").glob("*.onnx"):
        model = onnx.load(graph, load_external_data=False)
        values = {entry.key: entry.value for entry in model.metadata_props}
        assert (values["task"], values["adapter"], values["license"]) == ("tiny", "tiny", "cc-by-4.0")
        assert values["base"] == f"./{tiny_base.name}"
        (score,) = json.loads(values["scores"])
        assert score["split"] == "validation" and score["mean"] == tiny_run.metrics["best_metric"]
        assert str(tiny_base.parent) not in graph.read_bytes().decode(errors="replace")


def test_bundle_and_run_generate_the_same_answers(tiny_run: Run, tmp_path: Path) -> None:
    export_onnx(str(tiny_run.folder), tmp_path / "bundle")
    texts = ["abc", "a much longer text that is cut somewhere at forty eight tokens or so", "x"]
    answers = [generate(load(str(name)), texts, {}) for name in (tiny_run.folder, tmp_path / "bundle")]
    assert answers[0] == answers[1]
    generator = Generator.load(tmp_path / "bundle")
    assert generator.prompt is not None and generator.prompt.template == "say: {text}"
    assert generator.generate([generator.prompt.fill_text(text) for text in texts]) == answers[0]


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "length_penalty": 0.5, "no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.7, "min_new_tokens": 6, "max_new_tokens": 9},
    ],
)
def test_bundle_has_the_generation_settings_of_its_task(tiny_run: Run, tmp_path: Path, options: dict[str, Any]) -> None:
    """Verification stays greedy, and options of the call take precedence."""
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    task = yaml.safe_load((run / "task.yaml").read_text(encoding="utf-8"))
    (run / "task.yaml").write_text(yaml.safe_dump(task | {"generate": options}), encoding="utf-8")
    texts = ["abc", "some text", "x"]
    assert export_onnx(str(run), tmp_path / "bundle").parity.passed
    expected = generate(load(str(run)), texts, {})
    assert generate(load(str(tmp_path / "bundle")), texts, {}) == expected
    generator = Generator.load(tmp_path / "bundle")
    assert generator.prompt is not None
    prompts = [generator.prompt.fill_text(text) for text in texts]
    assert generator.generate(prompts) == expected
    plain = {"num_beams": 1, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "min_new_tokens": 0}
    assert generator.generate(prompts, **plain) == generate(load(str(run)), texts, plain) != expected


def test_export_of_a_merged_checkpoint_names_base_adapter_and_prompt(
    tiny_run: Run, tiny_base: Path, tmp_path: Path
) -> None:
    merge(tiny_run, tmp_path / "merged")
    export_onnx(str(tmp_path / "merged"), tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert (manifest["base"], manifest["adapter"]) == (str(tiny_base), "tiny")
    assert json.loads((tmp_path / "bundle" / "prompt.json").read_text())["template"] == "say: {text}"


def test_bf16_checkpoint_is_exported(tiny_run: Run, tmp_path: Path) -> None:
    merge(tiny_run, tmp_path / "merged", dtype="bf16")
    assert export_onnx(str(tmp_path / "merged"), tmp_path / "bundle").parity.passed


def test_checkpoint_without_a_task_is_compared_on_sentences(tiny_base: Path, tmp_path: Path) -> None:
    assert export_onnx(str(tiny_base), tmp_path / "bundle").parity.rows == 6
    assert Generator.load(tmp_path / "bundle").prompt is None


def test_relu_t5_with_a_tied_head_is_exported(tmp_path: Path) -> None:
    base = save_tiny_t5(tmp_path / "base", feed_forward_proj="relu", tie_word_embeddings=True)
    assert export_onnx(str(base), tmp_path / "bundle").parity.passed


def test_graphs_that_differ_are_not_published(tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small error in any weight must be detected."""
    from lora_ft.export.checkpoint.reader import Checkpoint

    original = Checkpoint.__getitem__

    def wrong(self: Checkpoint, name: str) -> np.ndarray:
        array = original(self, name)
        return array * np.float32(1.01) if name == "decoder.block.1.layer.2.DenseReluDense.wo.weight" else array

    monkeypatch.setattr(Checkpoint, "__getitem__", wrong)
    with pytest.raises(LoraFtError, match="differ from PyTorch"):
        export_onnx(str(tiny_run.folder), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_with_overflowing_logits_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.block.0.layer.0.SelfAttention.q.weight"] *= 1e36
    tensors["decoder.block.0.layer.0.SelfAttention.k.weight"] *= 1e36
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoraFtError, match=r"NaN or infinite.*, since some of its weights are too large"):
        export_onnx(str(folder), tmp_path / "bundle")


def test_existing_bundle_is_kept_without_overwrite(tiny_base: Path, tmp_path: Path) -> None:
    export_onnx(str(tiny_base), tmp_path / "bundle")
    with pytest.raises(UsageError, match="already exists"):
        export_onnx(str(tiny_base), tmp_path / "bundle")
    export_onnx(str(tiny_base), tmp_path / "bundle", overwrite=True)

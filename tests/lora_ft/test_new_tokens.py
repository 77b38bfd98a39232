"""New tokens are learned in unused rows, used by encoder and decoder, and kept in checkpoints and bundles."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lora_ft.core.errors import UsageError
from lora_ft.export.runtime import Generator
from lora_ft.export_onnx import export_onnx
from lora_ft.generate import generate
from lora_ft.merge import merge
from lora_ft.models.bases import load_model, load_tokenizer
from lora_ft.models.loading import load
from lora_ft.runs.run import Run
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from lora_ft.validate import validate
from tests.conftest import tiny_row, write_task
from tests.tiny import save_tiny_t5

MakeTask = Callable[..., Path]
NEW = ["<start>", "<end>"]


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def trained_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run that was trained to answer `<start> … <end>`."""
    folder = tmp_path_factory.mktemp("tokens")
    base = save_tiny_t5(folder / "base", tie_word_embeddings=request.param)
    path = write_task(
        folder,
        base,
        lora={"new_tokens": NEW, "target_modules": "all-linear"},
        train={"num_train_epochs": 40, "metric_for_best_model": "loss", "learning_rate": 0.02},
    )
    for split, count in (("train", 24), ("validation", 6), ("test", 6)):
        rows: list[Mapping[str, str]] = [
            {"text": tiny_row(i, split)["text"], "answer": f"{NEW[0]} {'ab'[i % 2]} {NEW[1]}"} for i in range(count)
        ]
        (path.parent / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return train(load_task(path), folder / "run")


def test_new_tokens_are_learned_and_kept_by_merge_and_export(trained_run: Run, tmp_path: Path) -> None:
    answers = generate(load(str(trained_run.folder)), ["abc", "<start> x"], {})
    assert all(answer.startswith("<start> ") and answer.endswith(" <end>") for answer in answers)
    merge(trained_run, tmp_path / "merged")
    assert generate(load(str(tmp_path / "merged")), ["abc", "<start> x"], {}) == answers
    exported = export_onnx(str(trained_run.folder), tmp_path / "bundle", verify_rows=4)
    assert exported.parity.passed
    generator = Generator.load(tmp_path / "bundle")
    assert generator.tokenizer.ids(NEW) == [71, 72]
    assert generate(load(str(tmp_path / "bundle")), ["abc", "<start> x"], {}) == answers
    theirs = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert theirs("a <start>b")["input_ids"] == generator.tokenizer.encode(["a <start>b"])[0]


def test_only_rows_of_new_tokens_change_in_the_embedding(trained_run: Run, tmp_path: Path) -> None:
    merge(trained_run, tmp_path / "merged")
    before, after = load_model(Path(trained_run.task.base)), load_model(tmp_path / "merged")
    for name in ("shared", "lm_head"):
        old, new = getattr(before, name).weight, getattr(after, name).weight
        assert (old != new).any(1).nonzero().flatten().tolist() == [71, 72]
    assert load_tokenizer(trained_run.adapter).ids(NEW) == [71, 72]


def test_encoder_and_decoder_share_the_row_of_a_new_token(trained_run: Run) -> None:
    base, weights = (
        load_model(Path(trained_run.task.base)),
        load_file(trained_run.adapter / "adapter_model.safetensors"),
    )
    rows = {name.split(".")[2]: tensor.shape for name, tensor in weights.items() if "trainable_tokens" in name}
    tied = base.lm_head.weight is base.shared.weight
    assert rows == {"shared": (2, 32)} | ({} if tied else {"lm_head": (2, 32)})


def test_more_new_tokens_than_unused_rows_are_refused(make_task: MakeTask) -> None:
    tokens = [f"<{i}>" for i in range(10)]
    report = validate(str(make_task(lora={"new_tokens": tokens})))
    assert "lora.new_tokens has 10 tokens, but the base has 9 unused rows" in str(report.errors[0])


def test_existing_token_is_refused_as_a_new_token(make_task: MakeTask, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'a' is already a token of the vocabulary"):
        train(load_task(make_task(lora={"new_tokens": ["a"]})), tmp_path / "run")


def test_token_index_beyond_the_vocabulary_is_refused(make_task: MakeTask) -> None:
    report = validate(str(make_task(lora={"trainable_token_indices": [80]})))
    assert "the base has no row 80; use indices below 80" in str(report.errors[0])


def test_token_that_the_codec_rewrites_is_refused(make_task: MakeTask) -> None:
    report = validate(str(make_task(codec="text", lora={"new_tokens": ["<a>"]})))
    assert "the codec text changes the token '<a>'; use letters and digits" in str(report.errors[0])


def test_code_of_the_card_loads_the_tokens_in_peft(
    trained_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [code] = re.findall(r"```python\n(from peft.*?)\n```", (trained_run.folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(trained_run.folder)
    names: dict[str, Any] = {}
    exec(re.sub(r'(base = .*from_pretrained)\(".*"\)', rf"\1({trained_run.task.base!r})", code), names)
    merge(trained_run, tmp_path / "merged")
    rows = {"input_ids": torch.tensor([[5, 71, 72, 9, 1]]), "decoder_input_ids": torch.tensor([[0, 71, 6, 72]])}
    with torch.no_grad():
        theirs, ours = names["model"].eval()(**rows).logits, load_model(tmp_path / "merged").eval()(**rows).logits
    assert torch.allclose(theirs, ours, atol=1e-4)

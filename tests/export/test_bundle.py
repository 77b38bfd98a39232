"""A bundle is published only when it says what PyTorch says, whole or not at all."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export import bundle as module
from export.errors import LoraFtError, UsageError
from export.parity import Reference
from export.runtime import Generator
from export.runtime.manifest import FILES
from export.runtime.text import Tokenizer
from export.t5 import T5
from tests.export.oracle import ORIGIN, TEXTS, entries, make_bundle, references
from tests.tiny import save_tiny_t5

WHOLE = {*FILES, "manifest.json"}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def manifest_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


def wrong_logits(answer: Reference) -> Reference:
    logits = answer.logits.copy()
    logits[0, 0, 5] += 0.01
    return replace(answer, logits=logits)


def wrong_tokens(answer: Reference) -> Reference:
    tokens = answer.tokens.copy()
    tokens[0, 0] = tokens[0, 0] % 70 + 5
    return replace(answer, tokens=tokens)


def no_number(answer: Reference) -> Reference:
    return replace(answer, logits=np.full_like(answer.logits, np.nan))


def test_a_bundle_holds_exactly_the_files_it_should(checkpoint: Path, tmp_path: Path) -> None:
    report = make_bundle(checkpoint, tmp_path / "new" / "bundle")
    assert report.passed
    assert report.rows == len(TEXTS)
    assert entries(tmp_path / "new" / "bundle") == WHOLE
    assert entries(tmp_path / "new") == {"bundle"}


def test_the_manifest_lists_hash_and_size_of_each_file(published: Path) -> None:
    assert manifest_of(published)["files"] == {
        name: {"sha256": digests(published)[name], "bytes": (published / name).stat().st_size} for name in FILES
    }


def test_the_manifest_says_where_the_bundle_comes_from(checkpoint: Path, tmp_path: Path) -> None:
    report = make_bundle(checkpoint, tmp_path / "bundle", base="a/base", adapter="mine", versions={"torch": "9.9"})
    manifest = manifest_of(tmp_path / "bundle")
    assert (manifest["format"], manifest["version"]) == ("lora-ft bundle", 1)
    assert (manifest["base"], manifest["adapter"], manifest["precision"]) == ("a/base", "mine", "fp32")
    assert manifest["parity"] == report.as_dict()
    assert manifest["versions"]["torch"] == "9.9"
    assert manifest["versions"]["onnx"] == onnx.__version__
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(manifest["created"])
    assert datetime.timedelta() <= age < datetime.timedelta(minutes=5)


def test_a_bundle_carries_its_prompt_and_limits(published: Path, checkpoint: Path) -> None:
    assert json.loads((published / "prompt.json").read_text()) == {"template": "say: {text}", "source_length": 48}
    assert json.loads((published / "generation_config.json").read_text()) == {
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "max_new_tokens": ORIGIN.max_new_tokens,
    }
    assert (published / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()


def test_a_bundle_without_a_task_has_no_prompt(checkpoint: Path, tmp_path: Path) -> None:
    make_bundle(checkpoint, tmp_path / "bundle", template=None)
    assert Generator.load(tmp_path / "bundle", threads=1).prompt is None


def test_a_prompt_in_any_script_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    make_bundle(checkpoint, tmp_path / "bundle", template="übersetze → {wörter} {{}}")
    prompt = Generator.load(tmp_path / "bundle", threads=1).prompt
    assert prompt is not None
    assert prompt.fill({"wörter": "x"}) == "übersetze → x {}"


@pytest.mark.parametrize("wrong", [wrong_logits, wrong_tokens, no_number])
@pytest.mark.parametrize("batch", [0, 1])
def test_a_bundle_that_differs_from_pytorch_is_not_written(
    checkpoint: Path, tmp_path: Path, wrong: Any, batch: int
) -> None:
    answers = list(references(checkpoint))
    answers[batch] = wrong(answers[batch])
    with pytest.raises(LoraFtError, match="differ from PyTorch") as caught:
        make_bundle(checkpoint, tmp_path / "bundle", references=answers)
    assert caught.value.exit_code == 1
    assert entries(tmp_path) == set()


def test_another_models_answers_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = references(save_tiny_t5(tmp_path / "other", seed=7))
    with pytest.raises(LoraFtError, match="differ from PyTorch"):
        make_bundle(checkpoint, tmp_path / "bundle", references=other)
    assert entries(tmp_path) == {"other"}


def test_a_bundle_that_was_compared_with_nothing_is_not_written(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(LoraFtError, match="0 of 0 rows"):
        make_bundle(checkpoint, tmp_path / "bundle", references=[])
    assert entries(tmp_path) == set()


def test_pytorchs_failure_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def failing() -> Iterator[Reference]:
        yield next(references(checkpoint))
        raise MemoryError

    with pytest.raises(MemoryError):
        make_bundle(checkpoint, tmp_path / "bundle", references=failing())
    assert entries(tmp_path) == set()


def test_a_failure_keeps_the_bundle_that_was_there(bundle: Path, checkpoint: Path) -> None:
    before = digests(bundle)
    answers = [wrong_logits(answer) for answer in references(checkpoint)]
    with pytest.raises(LoraFtError, match="differ from PyTorch"):
        make_bundle(checkpoint, bundle, references=answers, overwrite=True)
    assert digests(bundle) == before
    assert entries(bundle.parent) == {"bundle"}
    Generator.load(bundle, threads=1)


def test_an_existing_bundle_is_refused_before_any_work(bundle: Path, checkpoint: Path) -> None:
    before = digests(bundle)

    def untouched() -> Iterator[Reference]:
        raise AssertionError("references were taken")
        yield

    with pytest.raises(UsageError, match="already exists"):
        make_bundle(checkpoint, bundle, references=untouched())
    assert digests(bundle) == before
    assert entries(bundle.parent) == {"bundle"}


def test_overwriting_replaces_the_whole_bundle(bundle: Path, checkpoint: Path) -> None:
    (bundle / "notes.txt").write_text("of the old one")
    make_bundle(checkpoint, bundle, adapter="newer", overwrite=True)
    assert entries(bundle) == WHOLE
    assert entries(bundle.parent) == {"bundle"}
    assert manifest_of(bundle)["adapter"] == "newer"


def test_what_is_no_t5_leaves_nothing(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    answers = list(references(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bart"}))
    with pytest.raises(UsageError, match="only t5"):
        make_bundle(folder, tmp_path / "bundle", references=answers)
    assert entries(tmp_path) == {"base"}


def test_damaged_weights_leave_nothing(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    answers = list(references(folder))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LoraFtError, match=r"model\.safetensors"):
        make_bundle(folder, tmp_path / "bundle", references=answers)
    assert entries(tmp_path) == {"base"}


def test_a_graph_that_computes_something_else_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(T5):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.epsilon = 0.1

    monkeypatch.setattr(module, "T5", Wrong)
    with pytest.raises(LoraFtError, match="differ from PyTorch"):
        make_bundle(checkpoint, tmp_path / "bundle")
    assert entries(tmp_path) == set()


def test_each_stage_is_told_as_it_begins(checkpoint: Path, tmp_path: Path) -> None:
    told: list[str] = []

    def watched() -> Iterator[Reference]:
        told.append("references")
        yield from references(checkpoint)

    module.write_bundle(
        checkpoint,
        Tokenizer(checkpoint / "tokenizer.json"),
        ORIGIN,
        watched(),
        tmp_path / "bundle",
        progress=told.append,
    )
    assert told == ["building the graphs", "references"]


def test_the_graphs_of_a_bundle_are_valid_onnx(published: Path) -> None:
    for name in ("encoder.onnx", "decoder.onnx"):
        model = onnx.load(published / name)
        assert model.ir_version == 10
        assert {entry.domain for entry in model.opset_import} == {"", "com.microsoft"}
        assert all(not tensor.external_data for tensor in model.graph.initializer)

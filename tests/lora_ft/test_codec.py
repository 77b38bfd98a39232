"""The codec of a task from training to the bundle: newlines in targets become newlines in answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from lora_ft.evaluate import evaluate
from lora_ft.export_onnx import export_onnx
from lora_ft.generate import generate, stream
from lora_ft.merge import merge
from lora_ft.models.loading import load
from lora_ft.runs.run import Run
from lora_ft.tasks.files import load_task
from lora_ft.train import train

MakeTask = Callable[..., Path]
PROMPTS = ["t bcd", "one\n  two {x}"]


@pytest.fixture(scope="module")
def base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny base with pieces for the marks, as in T5's vocabulary."""
    folder = shutil.copytree(tiny_base, tmp_path_factory.mktemp("marks") / "base")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"] += [[piece, -1.0] for piece in "•′«»;[]"]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() <= 80
    return folder


def trained(make_task: MakeTask, base: Path, out: Path, codec: str, answer: object) -> Run:
    """Return a run that has learned to give the same answer to all rows."""
    path = make_task(
        name=codec,
        codec=codec,
        base=str(base),
        lora={"preset": "default"},
        train={"max_steps": 150, "learning_rate": 0.01, "eval_every": 50},
    )
    for split in ("train", "validation", "test"):
        file = path.parent / f"{split}.jsonl"
        rows = [json.loads(line) | {"answer": answer} for line in file.read_text(encoding="utf-8").splitlines()]
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return train(load_task(path), out)


@pytest.mark.parametrize(
    ("codec", "answer", "stored"),
    [
        ("text", "a\n{b}\n", "a\n{b}\n"),
        ("json", {"a": "b\nc"}, '{"a": "b\\nc"}'),
    ],
)
def test_run_checkpoint_and_bundle_write_the_trained_text(
    make_task: MakeTask, base: Path, tmp_path: Path, codec: str, answer: object, stored: str
) -> None:
    run = trained(make_task, base, tmp_path / "run", codec, answer)
    torch = load(str(run.folder))
    assert generate(torch, PROMPTS, {}) == [stored] * 2

    merge(run, tmp_path / "merged")
    assert generate(load(str(tmp_path / "merged")), PROMPTS, {}) == [stored] * 2

    export_onnx(str(run.folder), tmp_path / "bundle")
    bundle = load(str(tmp_path / "bundle"))
    assert bundle.backend.tokenizer.encode(PROMPTS) == torch.backend.tokenizer.encode(PROMPTS)
    assert generate(bundle, PROMPTS, {}) == [stored] * 2
    assert "".join(stream(bundle, PROMPTS[:1], {})) == stored + "\n"

    evaluation = evaluate(str(run.folder))
    assert evaluation.scores["rouge1"].mean == 100
    assert [json.loads(line)["output"] for line in (run.folder / "predictions-test.jsonl").open()] == [stored] * 6
    if codec == "json":
        assert evaluation.scores["valid"].mean == evaluation.scores["same_value"].mean == 100

"""Distillation: the loss against plain torch, packed and padded rows, exact resume, and teachers that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from lora_ft.core.errors import LoraFtError, TaskError, UsageError
from lora_ft.core.tokenizer import IGNORED
from lora_ft.models.bases import load_model
from lora_ft.publishing.redaction import public_task
from lora_ft.runs.run import Run
from lora_ft.shrink import shrink
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from lora_ft.train_many import train_many
from lora_ft.training.cross_entropy import SummedDistillation
from lora_ft.validate import validate
from tests.lora_ft.test_methods import Stopped, losses, stop_at
from tests.tiny import save_tiny_t5

MakeTask = Callable[..., Path]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return another random T5 with the tokens of the tiny base."""
    return save_tiny_t5(tmp_path_factory.mktemp("teacher") / "base", seed=9, num_decoder_layers=1)


def expected_loss(logits: torch.Tensor, taught: torch.Tensor, labels: torch.Tensor, alpha: float, t: float) -> Any:
    entropy = cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    kept = labels != IGNORED
    divergence = kl_div(log_softmax(logits[kept].float() / t, 1), softmax(taught[kept].float() / t, 1), reduction="sum")
    return alpha * entropy + (1 - alpha) * t**2 * divergence


@pytest.mark.parametrize("tokens", [1, 32, 75])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.0, 1.0), (0.3, 1.0), (0.5, 2.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_in_chunks_equals_that_of_torch(tokens: int, alpha: float, temperature: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values, taught = (5 * torch.randn(tokens, 80) for _ in range(2))
    labels = torch.randint(0, 80, (tokens,))
    labels[1::3] = IGNORED
    plain, chunked = (values.to(dtype).requires_grad_() for _ in range(2))
    expected = expected_loss(plain, taught.to(dtype), labels, alpha, temperature)
    loss = SummedDistillation.apply(chunked, taught.to(dtype), labels, alpha, temperature)
    (expected / 7).backward()
    (loss / 7).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    close = {"rtol": 0.02, "atol": 2e-3} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(chunked.grad, plain.grad, **close)


def distilled(make_task: MakeTask, teacher: object, **sections: Any) -> Path:
    settings = {"metric_for_best_model": "loss", "distill": {"teacher": str(teacher), "alpha": 0.4}}
    return make_task(**{**sections, "train": settings | sections.get("train", {})})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_of_a_step_is_that_of_both_models(
    precision: str, teacher: Path, tiny_base: Path, make_task: MakeTask, tmp_path: Path
) -> None:
    from lora_ft.data.batching import collate, encode
    from lora_ft.data.splits import load_splits
    from lora_ft.models.bases import load_tokenizer

    settings = {"precision": precision, "max_steps": 1, "per_device_train_batch_size": 24}
    task = load_task(distilled(make_task, teacher, train=settings))
    [loss] = losses(train(task, tmp_path / "run"))
    rows = encode(load_splits(task).train, load_tokenizer(tiny_base), task.lengths, "train")
    batch = collate(rows, 0)
    labels = batch.pop("labels")
    with torch.inference_mode():
        student, taught = (load_model(folder)(**batch).logits.flatten(0, 1) for folder in (tiny_base, teacher))
    total = expected_loss(student, taught, labels.flatten(), 0.4, 1.0)
    assert loss == pytest.approx(float(total / (labels != IGNORED).sum()), rel=1e-3 if precision == "fp32" else 0.02)


def test_a_student_comes_nearer_to_its_teacher(
    teacher: Path, tiny_base: Path, make_task: MakeTask, tmp_path: Path
) -> None:
    settings = {"distill": {"teacher": str(teacher), "alpha": 0}, "num_train_epochs": 6, "learning_rate": 3e-3}
    values = losses(train(load_task(distilled(make_task, teacher, method="full", train=settings)), tmp_path / "run"))
    assert sum(values[-5:]) < 0.8 * sum(values[:5])


def test_a_run_teaches_a_shrunk_base(make_task: MakeTask, tiny_run: Run, tiny_base: Path, tmp_path: Path) -> None:
    shrink(tiny_base, tmp_path / "small", decoder_layers=1)
    task = load_task(distilled(make_task, tiny_run.folder, method="full", base=str(tmp_path / "small")))
    run = train(task, tmp_path / "run")
    assert run.task.train.distill is not None and run.task.train.distill.teacher == str(tiny_run.folder)
    assert "distilled from" in (run.folder / "README.md").read_text()
    public = public_task(run.task).train.distill
    assert public is not None and public.teacher == f"./{tiny_run.folder.name}"


@pytest.mark.parametrize("step", [1, 4], ids=["before a checkpoint", "after one"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_stopped_distillation_resumes_bit_identically(
    method: str, step: int, teacher: Path, make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"eval_every": 3, "num_train_epochs": 1, "base_dropout": 0.1, "precision": "bf16"}
    task = load_task(distilled(make_task, teacher, method=method, train=settings))
    whole = train(task, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(Stopped):
            train(task, tmp_path / "run")
    resumed = train(task, tmp_path / "run", resume=True)
    ours, theirs = (load_file(next(run.trained.glob("*.safetensors"))) for run in (resumed, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert losses(resumed) == losses(whole)


def test_a_relative_teacher_starts_from_the_task_file(teacher: Path, make_task: MakeTask) -> None:
    path = make_task()
    (path.parent / "teacher").symlink_to(teacher)
    distill = load_task(distilled(make_task, "teacher")).train.distill
    assert distill is not None and distill.teacher == str(teacher)


def test_teachers_that_do_not_fit_are_refused(make_task: MakeTask, published: Path, tmp_path: Path) -> None:
    wide = save_tiny_t5(tmp_path / "wide", vocab_size=96)
    for name, problem in (
        (wide, "other tokens than the base"),
        (published, "is a bundle"),
        ("./nowhere", "no base at"),
    ):
        task = distilled(make_task, name)
        [error] = validate(str(task)).errors
        assert error.key == "train.distill.teacher" and problem in str(error)
        with pytest.raises(LoraFtError, match=problem):
            train(load_task(task), tmp_path / "run")


def test_smoothing_and_groups_are_refused(teacher: Path, make_task: MakeTask, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="label_smoothing_factor has no effect with distill"):
        load_task(distilled(make_task, teacher, train={"label_smoothing_factor": 0.1}))
    tasks = [load_task(distilled(make_task, teacher, name=name)) for name in ("one", "two")]
    with pytest.raises(UsageError, match="an adapter group has no teacher"):
        train_many(tasks, tmp_path / "runs")

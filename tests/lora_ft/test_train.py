"""Training: files of a run, learning, exact resume, and errors that stop a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from lora_ft.core.errors import LoraFtError, LossError, UsageError
from lora_ft.runs.run import Run, working_folder
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from lora_ft.train import Interrupted, train
from lora_ft.training.plan import Plan

MakeTask = Callable[..., Path]
# Every source of randomness is on, so that an inexact resume shows.
RANDOM: dict[str, Any] = {"eval_every": 3, "num_train_epochs": 3, "base_dropout": 0.1}


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def closeness(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest relative difference of any weight matrix."""
    return max(float((a[name] - b[name]).norm() / b[name].norm().clamp(min=1e-6)) for name in b)


def losses(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def start(task: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start `lora-ft train` in a new process."""
    command = [sys.executable, "-m", "lora_ft", "train", str(task), "--out", str(out), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"training ended too early: {process.stderr.read().decode()}"  # type: ignore[union-attr]
        assert time.monotonic() < deadline, "training never got there"
        time.sleep(0.002)


def test_run_contains_all_its_files(make_task: MakeTask, tmp_path: Path, tiny_base: Path) -> None:
    run = train(load_task(make_task()), tmp_path / "run")
    assert {path.name for path in run.folder.iterdir()} == {
        "adapter",
        "task.yaml",
        "metrics.json",
        "log.jsonl",
        "README.md",
        "claim.json",
        "resume",
        "report.html",
    }
    assert {path.suffix for path in run.adapter.iterdir()} == {".json", ".safetensors"}  # no pickles
    assert not working_folder(run.folder).exists()
    assert load_task(run.folder / "task.yaml") == run.task
    assert run.metrics["steps"] == 12
    assert run.metrics["base"]["vocab_size"] == 80
    assert json.loads((run.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_base)


def test_training_learns_and_vanilla_peft_loads_the_adapter(
    make_task: MakeTask, tmp_path: Path, tiny_base: Path
) -> None:
    run = train(load_task(make_task(rows=8, train={"num_train_epochs": 30})), tmp_path / "run")
    loss_values = losses(run.folder)
    assert sum(loss_values[-5:]) < 0.7 * sum(loss_values[:5])
    model = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(tiny_base), str(run.adapter))
    changed = [name for name, value in model.named_parameters() if "lora_B" in name and value.abs().max() > 0]
    assert len(changed) == 12  # q and v of two encoder layers, and of two decoder layers twice


def test_run_that_ends_before_its_first_log_records_its_loss(make_task: MakeTask, tmp_path: Path) -> None:
    run = train(load_task(make_task(train={"num_train_epochs": 1, "logging_steps": 1000})), tmp_path / "run")
    assert 0 < run.metrics["train_loss"] < 100


def test_validation_answers_are_not_truncated_at_twenty_tokens(make_task: MakeTask, tmp_path: Path) -> None:
    """peft#1120, transformers#10032: an encoder-decoder in peft ignores the Trainer's generation settings."""
    lengths: list[int] = []
    original = T5ForConditionalGeneration.generate

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        lengths.append(kwargs["max_new_tokens"])
        return original(self, *args, **kwargs)

    patch = pytest.MonkeyPatch()
    patch.setattr(T5ForConditionalGeneration, "generate", spy)
    try:
        train(load_task(make_task(lengths={"target": 44}, train={"num_train_epochs": 1})), tmp_path / "run")
    finally:
        patch.undo()
    assert set(lengths) == {44}


def test_eval_loss_and_rouge_are_both_logged(make_task: MakeTask, tmp_path: Path) -> None:
    """transformers#33420, peft#1881: metrics vanish for a PeftModel without label_names."""
    run = train(load_task(make_task()), tmp_path / "run")
    assert [entry["step"] for entry in run.metrics["evaluations"]] == [6, 12]
    assert all({"eval_loss", "eval_rouge1", "eval_rougeLsum"} <= entry.keys() for entry in run.metrics["evaluations"])
    assert run.metrics["best_metric"] == max(entry["eval_rouge1"] for entry in run.metrics["evaluations"])


def test_best_checkpoint_becomes_the_adapter(make_task: MakeTask, tmp_path: Path) -> None:
    """Few rows and many epochs overfit, so the last checkpoint is not the best."""
    settings = {"metric_for_best_model": "loss", "num_train_epochs": 30, "eval_every": 2, "warmup_ratio": 0.0}
    task = load_task(make_task(rows=8, train=settings | {"learning_rate": 0.03, "lr_scheduler_type": "constant"}))
    run = train(task, tmp_path / "run")
    by_step = {entry["step"]: entry["eval_loss"] for entry in run.metrics["evaluations"]}
    assert run.metrics["best_step"] == min(by_step, key=by_step.__getitem__) != max(by_step)
    short = load_task(task_file(run), [f"train.max_steps={run.metrics['best_step']}", "data.validation=null"])
    again = train(short, tmp_path / "again")
    assert same(weights(run), weights(again))


def task_file(run: Run) -> Path:
    return run.folder / "task.yaml"


def test_early_stopping_ends_the_run(make_task: MakeTask, tmp_path: Path) -> None:
    settings = {"metric_for_best_model": "loss", "num_train_epochs": 40, "eval_every": 2, "early_stopping_patience": 2}
    overfitting = {"learning_rate": 0.03, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    run = train(load_task(make_task(rows=8, train=settings | overfitting)), tmp_path / "run")
    assert run.metrics["steps"] == run.metrics["best_step"] + 4 < 80


def test_accumulated_batches_train_the_same_adapter_as_large_batches(make_task: MakeTask, tmp_path: Path) -> None:
    """The loss is averaged over the tokens of the whole step, not over micro-batches of unequal length."""
    large = train(load_task(make_task(train={"per_device_train_batch_size": 8})), tmp_path / "large")
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    accumulated = train(load_task(make_task(train=small)), tmp_path / "accumulated")
    assert closeness(weights(accumulated), weights(large)) < 1e-3


def test_gradient_checkpointing_trains_the_same_adapter(make_task: MakeTask, tmp_path: Path) -> None:
    """peft#80, transformers#42489: with a frozen embedding no gradient may reach the adapter."""
    plain = train(load_task(make_task()), tmp_path / "plain")
    recomputed = train(load_task(make_task(train={"gradient_checkpointing": True})), tmp_path / "recomputed")
    assert closeness(weights(recomputed), weights(plain)) < 1e-4


def test_bf16_autocast_keeps_the_adapter_in_float32(make_task: MakeTask, tmp_path: Path) -> None:
    run = train(load_task(make_task(train={"precision": "bf16"})), tmp_path / "run")
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}
    assert all(loss > 0 for loss in losses(run.folder))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_kept_encoder_states_train_the_same_adapter(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, accumulated: int
) -> None:
    settings = {"num_train_epochs": 3, "precision": precision, "gradient_accumulation_steps": accumulated}
    task = load_task(make_task(train=settings, lora={"target_modules": "decoder", "lora_dropout": 0.1}))
    kept = train(task, tmp_path / "kept")
    monkeypatch.setattr(Plan, "keeps_states", False)
    plain = train(task, tmp_path / "plain")
    assert not any("encoder" in name for name in weights(kept))
    assert losses(kept.folder) == pytest.approx(losses(plain.folder), rel=1e-4 if precision == "fp32" else 0.02)
    assert closeness(weights(kept), weights(plain)) < (1e-4 if precision == "fp32" else 0.2)


def test_non_finite_loss_stops_the_run(make_task: MakeTask, tmp_path: Path) -> None:
    settings = {"learning_rate": 3e37, "warmup_ratio": 0.0, "max_grad_norm": 0.0}
    with pytest.raises(LossError, match=r"not finite \(got (nan|inf)\); lower train\.learning_rate"):
        train(load_task(make_task(train=settings)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_zero_loss_stops_the_run(make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """artidoro/qlora#135: FLAN-T5 with LoRA in fp16 trains on a loss of 0.0 and learns nothing."""
    monkeypatch.setattr(
        "lora_ft.training.trainer.token_loss", lambda outputs, labels, num_items_in_batch: outputs.logits.sum() * 0
    )
    with pytest.raises(LossError, match="exactly 0"):
        train(load_task(make_task()), tmp_path / "run")


def test_training_without_validation_rows_keeps_the_last_checkpoint(make_task: MakeTask, tmp_path: Path) -> None:
    run = train(load_task(make_task(data={"validation": None})), tmp_path / "run")
    assert run.metrics["best_metric"] is None
    assert run.metrics["evaluations"] == []


def test_existing_runs_are_not_replaced_without_overwrite(make_task: MakeTask, tmp_path: Path) -> None:
    task = load_task(make_task(train={"num_train_epochs": 1}))
    first = train(task, tmp_path / "run")
    before = weights(first)
    with pytest.raises(UsageError, match="already exists"):
        train(task, tmp_path / "run")
    changed = task.model_copy(update={"train": task.train.model_copy(update={"seed": 7})})
    assert not same(weights(train(changed, tmp_path / "run", overwrite=True)), before)


def test_resume_requires_an_unfinished_run(make_task: MakeTask, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the unfinished run .* does not exist"):
        train(load_task(make_task()), tmp_path / "run", resume=True)


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path
) -> Callable[[Task], dict[str, torch.Tensor]]:
    """Return the weights of an uninterrupted run, trained once per module."""
    cached: dict[str, dict[str, torch.Tensor]] = {}

    def get(task: Task) -> dict[str, torch.Tensor]:
        key = task.model_dump_json(exclude={"data"})
        if key not in cached:
            cached[key] = weights(train(task, tmp_path_factory.mktemp("whole") / "run"))
        return cached[key]

    return get


MOMENTS: dict[str, Callable[[Path], object]] = {
    "before the first checkpoint": lambda run: (run / "log.jsonl").exists(),
    "while a checkpoint is written": lambda run: (run / "checkpoint-6").exists(),
    "after a checkpoint": lambda run: (run / "checkpoint-9" / "complete").exists(),
    "between checkpoints": lambda run: (
        len((run / "log.jsonl").read_text().splitlines()) > 8 if (run / "log.jsonl").exists() else False
    ),
}


@pytest.mark.parametrize(
    ("moment", "precision", "dropout", "targets"),
    [
        *((moment, "fp32", 0.1, "q,v") for moment in MOMENTS),
        ("after a checkpoint", "bf16", 0.0, "q,v"),
        ("after a checkpoint", "fp32", 0.1, "decoder"),
        ("after a checkpoint", "bf16", 0.0, "decoder"),
    ],
)
def test_killed_run_resumes_bit_identically(
    moment: str,
    precision: str,
    dropout: float,
    targets: str,
    make_task: MakeTask,
    tmp_path: Path,
    uninterrupted: Callable[[Task], dict[str, torch.Tensor]],
) -> None:
    constant = {"base_dropout": 0.0} if targets == "decoder" else {}  # encoder states are kept then
    lora = {"lora_dropout": dropout, "target_modules": targets}
    task = make_task(train=RANDOM | {"precision": precision} | constant, lora=lora)
    out = tmp_path / "run"
    process = start(task, out)
    wait_for(lambda: MOMENTS[moment](working_folder(out)), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    with pytest.raises(UsageError, match="--resume to continue"):
        train(load_task(task), out)
    run = train(load_task(task), out, resume=True)
    assert same(weights(run), uninterrupted(load_task(task)))
    logged = [json.loads(line)["step"] for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert logged == sorted(logged) and len(losses(run.folder)) == run.metrics["steps"]  # no step is logged twice


def test_ctrl_c_saves_a_checkpoint_and_prints_how_to_resume(
    make_task: MakeTask, tmp_path: Path, uninterrupted: Callable[[Task], dict[str, torch.Tensor]]
) -> None:
    task = make_task(train=RANDOM, lora={"lora_dropout": 0.1})
    out = tmp_path / "run"
    process = start(task, out)
    wait_for(lambda: (working_folder(out) / "log.jsonl").exists(), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"repeat the command with --resume to continue" in errors and b"Traceback" not in errors
    assert same(weights(train(load_task(task), out, resume=True)), uninterrupted(load_task(task)))


def validated_steps(folder: Path) -> list[int]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if any(name.startswith("eval_") for name in line)]


def test_resume_refuses_another_task(make_task: MakeTask, tmp_path: Path) -> None:
    task = load_task(make_task(train={"learning_rate": 3e37, "warmup_ratio": 0.0, "max_grad_norm": 0.0}))
    with pytest.raises(LoraFtError):
        train(task, tmp_path / "run")
    changed = task.model_copy(update={"train": task.train.model_copy(update={"learning_rate": 0.01})})
    with pytest.raises(UsageError, match=r"of the unfinished run .* in train"):
        train(changed, tmp_path / "run", resume=True)


def test_two_processes_match_the_loss_curve_of_one(make_task: MakeTask, tmp_path: Path) -> None:
    alone = train(load_task(make_task(train={"per_device_train_batch_size": 4})), tmp_path / "alone")
    task = make_task(train={"per_device_train_batch_size": 2})
    out = tmp_path / "pair"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launch, "-m", "lora_ft", "train", str(task), "--out", str(out)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert completed.returncode == 0, completed.stderr
    assert losses(out) == pytest.approx(losses(alone.folder), rel=2e-3)
    assert closeness(weights(Run(out)), weights(alone)) < 1e-2
    assert completed.stdout.count("adapter ") == 1  # only one process prints


def test_interrupted_is_a_separate_error() -> None:
    assert Interrupted("stopped").exit_code == 130


def test_resumed_run_keeps_its_precision(make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine, or the same one under load, could choose differently and change the result."""
    task = load_task(make_task(train={"precision": "auto", "learning_rate": 3e37, "max_grad_norm": 0.0}))
    monkeypatch.setattr("lora_ft.training.compute_dtype.cpu_flags", lambda: frozenset({"avx512_bf16"}))
    with pytest.raises(LoraFtError, match="not finite"):
        train(task, tmp_path / "run")
    monkeypatch.setattr("lora_ft.training.compute_dtype.cpu_flags", lambda: frozenset())
    began = json.loads((working_folder(tmp_path / "run") / "choices.json").read_text())
    assert began == {"precision": "bf16", "compile": False}
    with pytest.raises(LoraFtError, match="not finite"):
        train(task, tmp_path / "run", resume=True)
    assert json.loads((working_folder(tmp_path / "run") / "choices.json").read_text()) == began


def test_tensorboard_shows_one_set_of_curves_and_the_task_of_a_resumed_run(make_task: MakeTask, tmp_path: Path) -> None:
    """Steps that a stopped run took after its checkpoint are not shown twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"report_to": ["tensorboard"], "eval_every": 3, "num_train_epochs": 2}
    task = load_task(make_task(train=settings))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lora_ft.training.trainer.Trainer._guard", stop_at(8))
        train(task, tmp_path / "run")
    run = train(task, tmp_path / "run", resume=True)
    assert run.metrics["resumed_at"] == 6
    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    steps = {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert steps["train/loss"] == list(range(1, 13)) and steps["train/learning_rate"] == list(range(1, 13))
    for name in ("loss", "rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert steps[f"eval/{name}"] == [3, 6, 9, 12]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses(run.folder), rel=1e-6)
    shown = events.Tensors("task/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "learning_rate: 0.01" in shown and "r: 8" in shown


def stop_at(step: int) -> Callable[[Any, float], None]:
    def guard(self: Any, loss: float) -> None:
        if self.state.global_step == step:
            raise KeyboardInterrupt

    return guard

"""The plan counts steps and parameters as training does, and gives the reason to compile or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from lora_ft.data.batching import Encoded, padding_share
from lora_ft.models.adapters import count_parameters
from lora_ft.models.bases import load_model
from lora_ft.tasks.files import load_task
from lora_ft.tasks.lora import Lora
from lora_ft.training.plan import Plan, make_plan
from tests.tiny import CONFIG

MakeTask = Callable[..., Path]

SMALL: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}
BASE = SMALL | {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12}


def rows(count: int) -> list[Encoded]:
    return [Encoded([5] * (3 + i % 20) + [1], [6] * (1 + i % 7) + [1]) for i in range(count)]


def plan(path: Path, count: int = 24, processes: int = 1, **train: Any) -> Plan:
    return make_plan(
        load_task(path, [f"train.{key}={value}" for key, value in train.items()]), CONFIG, rows(count), processes
    )


@pytest.mark.parametrize(
    ("count", "processes", "train", "batch", "per_epoch", "steps"),
    [
        (24, 1, {"num_train_epochs": 2}, 4, 6, 12),
        (25, 1, {"num_train_epochs": 2}, 4, 7, 14),
        (24, 1, {"num_train_epochs": 1.5}, 4, 6, 9),
        (24, 1, {"num_train_epochs": 0.1}, 4, 6, 1),
        (24, 1, {"num_train_epochs": 2, "gradient_accumulation_steps": 4}, 16, 2, 4),
        (24, 2, {"num_train_epochs": 2, "gradient_accumulation_steps": 2}, 16, 2, 4),
        (24, 3, {"num_train_epochs": 2}, 12, 2, 4),
        (24, 1, {"num_train_epochs": 2, "max_steps": 5}, 4, 6, 5),
        (24, 1, {"num_train_epochs": 2, "max_steps": 500}, 4, 6, 500),
    ],
)
def test_steps_follow_from_rows_batches_processes_and_epochs(
    make_task: MakeTask, count: int, processes: int, train: dict[str, Any], batch: int, per_epoch: int, steps: int
) -> None:
    planned = plan(make_task(), count, processes, **train)
    assert (planned.global_batch, planned.steps_per_epoch, planned.steps) == (batch, per_epoch, steps)


@pytest.mark.parametrize(("ratio", "steps"), [(0, 0), (0.25, 3), (0.05, 1)])
def test_warmup_is_a_share_of_the_steps(make_task: MakeTask, ratio: float, steps: int) -> None:
    assert plan(make_task(), warmup_ratio=ratio).warmup_steps == steps


@pytest.mark.parametrize(
    ("sections", "device", "processes", "kept"),
    [
        ({"lora": {"target_modules": "decoder"}}, "cpu", 1, True),
        ({"lora": {"target_modules": "EncDecAttention.q,EncDecAttention.v"}}, "cpu", 1, True),
        ({"lora": {"target_modules": "q,v"}}, "cpu", 1, False),
        ({"lora": {"target_modules": "decoder", "trainable_token_indices": [5]}}, "cpu", 1, False),
        ({"lora": {"target_modules": "decoder"}, "train": {"base_dropout": 0.1}}, "cpu", 1, False),
        ({"lora": {"target_modules": "decoder"}, "train": {"num_train_epochs": 1}}, "cpu", 1, False),
        ({"lora": {"target_modules": "decoder"}}, "cuda", 1, False),
        ({"lora": {"target_modules": "decoder"}}, "cpu", 2, False),
        ({"method": "full"}, "cpu", 1, False),
    ],
)
def test_encoder_states_are_kept_where_they_stay_the_same_and_are_needed_again(
    make_task: MakeTask,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, Any],
    device: str,
    processes: int,
    kept: bool,
) -> None:
    monkeypatch.setattr("lora_ft.training.plan.training_device", lambda: device)
    planned = plan(make_task(**sections), processes=processes)
    assert planned.keeps_states == kept
    assert ("encoder run once per prompt" in "\n".join(planned.lines())) == kept


def test_encoder_states_beyond_a_quarter_of_the_memory_are_not_kept(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(make_task(lora={"target_modules": "decoder"}))
    assert planned.states == sum({len(row.input_ids) for row in rows(24)}) * CONFIG["d_model"]
    for more, kept in ((0, True), (-1, False)):
        memory = 4 * 4 * planned.states + more
        monkeypatch.setattr("lora_ft.training.encoder_states.allowed_memory", lambda memory=memory: memory)
        assert planned.keeps_states == kept


def test_padding_follows_the_training_order(make_task: MakeTask) -> None:
    assert plan(make_task(), seed=7).padding == padding_share(rows(24), 4, 4, 7)


@pytest.mark.parametrize(("r", "targets"), [(8, "q,v"), (3, ["wi_0", "wo"]), (4, "all-linear")])
def test_parameter_counts_equal_pefts(tiny_base: Path, r: int, targets: str | list[str]) -> None:
    lora = Lora.model_validate({"r": r, "target_modules": targets})
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=r, target_modules=lora.target_modules)
    model = load_model(tiny_base)
    bare = sum(parameter.numel() for parameter in model.parameters())
    trainable, everything = get_peft_model(model, config).get_nb_trainable_parameters()
    counted = count_parameters(json.loads((tiny_base / "config.json").read_text(encoding="utf-8")), lora)
    assert counted == (trainable, everything) == (trainable, bare + trainable)


@pytest.mark.parametrize(
    ("config", "r", "targets", "trainable", "bare"),
    [
        (SMALL, 16, "q,v", 688_128, 76_961_152),
        (SMALL, 8, "q,v", 344_064, 76_961_152),
        (SMALL, 16, "all-linear", 2_555_904, 76_961_152),
        (BASE, 16, "q,v", 1_769_472, 247_577_856),
        (BASE, 16, "all-linear", 6_782_976, 247_577_856),
    ],
)
def test_flan_t5_has_the_published_parameter_counts(
    config: dict[str, Any], r: int, targets: str, trainable: int, bare: int
) -> None:
    lora = Lora.model_validate({"r": r, "target_modules": targets})
    assert count_parameters(config, lora) == (trainable, bare + trainable)


def test_tied_head_is_counted_once() -> None:
    lora = Lora.model_validate({"preset": "tiny"})
    tied, untied = (count_parameters(CONFIG | {"tie_word_embeddings": tie}, lora) for tie in (True, False))
    assert tied[0] == untied[0] and untied[1] - tied[1] == CONFIG["vocab_size"] * CONFIG["d_model"]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a CPU of a known speed, with a compiler."""
    monkeypatch.setattr("lora_ft.training.plan.training_device", lambda: "cpu")
    monkeypatch.setattr("lora_ft.training.plan._measured_flops", lambda *_: 1e9)
    monkeypatch.setattr("lora_ft.training.plan.shutil.which", lambda name: f"/usr/bin/{name}")


@pytest.mark.parametrize("setting", ["on", "off"])
def test_task_setting_decides_whether_to_compile(make_task: MakeTask, on_cpu: None, setting: str) -> None:
    planned = plan(make_task(train={"compile": setting, "max_steps": 10}))
    assert planned.compile == (setting == "on") and planned.compile_reason == "set by the task"


def test_long_training_is_compiled_and_short_training_is_not(make_task: MakeTask, on_cpu: None) -> None:
    long = plan(make_task(train={"compile": "auto", "max_steps": 1_000_000}))
    assert long.compile and "of which it saves" in long.compile_reason
    short = plan(make_task(train={"compile": "auto", "max_steps": 10}))
    assert not short.compile and "compiling alone takes" in short.compile_reason


def test_steps_on_packed_rows_are_not_compiled_by_choice(make_task: MakeTask, on_cpu: None) -> None:
    settings = {"precision": "bf16", "max_steps": 1_000_000}
    planned = plan(make_task(train={"compile": "auto", **settings}))
    assert planned.packed and not planned.compile and "uncompiled steps are faster" in planned.compile_reason
    assert plan(make_task(train={"compile": "on", **settings})).compile


def test_model_is_not_compiled_without_a_compiler(
    make_task: MakeTask, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_task(train={"compile": "auto", "max_steps": 1_000_000})
    monkeypatch.setattr(
        "lora_ft.training.plan.shutil.which", lambda name: "/usr/bin/clang++" if name == "clang++" else None
    )
    assert plan(path).compile
    monkeypatch.setattr("lora_ft.training.plan.shutil.which", lambda _: None)
    planned = plan(path)
    assert not planned.compile and planned.compile_reason == "no C++ compiler is installed"


def test_model_is_not_compiled_on_an_apple_gpu(make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ft.training.plan.training_device", lambda: "mps")
    planned = plan(make_task(train={"compile": "auto", "max_steps": 1_000_000}))
    assert not planned.compile and planned.device == "mps"


def test_speed_of_this_machine_is_measured(make_task: MakeTask) -> None:
    planned = plan(make_task(train={"compile": "auto", "max_steps": 1}))
    assert not planned.compile and planned.compile_reason


def test_plan_lines_report_parameters_steps_and_choices(make_task: MakeTask, on_cpu: None) -> None:
    planned = plan(make_task())
    text = "\n".join(planned.lines())
    assert f"{planned.trainable:,} of {planned.parameters:,} parameters trained" in text
    assert "12 steps of 4 rows (6 an epoch)" in text
    assert "precision fp32: set by the task" in text and "compile off: set by the task" in text

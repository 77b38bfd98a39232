"""`train` accepts what `validate` accepts: random valid tasks train one step, or name a limit of the machine."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError
from lora_ft.tasks.files import InvalidTaskError, load_task
from lora_ft.train import train
from lora_ft.validate import validate
from tests.conftest import write_task

TRIES = int(os.environ.get("LORA_FT_FUZZ", "25"))
# Faults of the machine, not of the task.
RESOURCES = re.compile(r"out of memory|not enough memory|disk|no C\+\+ compiler|not installed")

# Usual values, and those at the bounds.
VALUES: dict[str, list[Any]] = {
    "lora.r": [1, 2, 3, 8, 40, 300],
    "lora.lora_alpha": [1, 7, 1_000_000],
    "lora.lora_dropout": [0.0, 0.5, 0.9],
    "lora.target_modules": ["q,v", "all-linear", ["wo"], ["0.SelfAttention.q"], ["lm_head"], ["q", "nothing"]],
    "lora.use_dora": [True, False],
    "lora.use_rslora": [True, False],
    "lora.init_lora_weights": [True, False, "gaussian", "orthogonal", "pissa", "pissa_niter_2", "olora", "eva"],
    "lora.rank_pattern": [{}, {"q": 2}, {"v": 40}, {".*decoder.*q": 3}],
    "lora.alpha_pattern": [{}, {"q": 5}],
    "lora.trainable_token_indices": [[], [5], [3, 3, 70], [10**6]],
    "lora.new_tokens": [[], ["<one>"], ["<one>", "<two>"], ["a"]],
    "lora.loraplus_lr_ratio": [None, 1, 16, 1e6],
    "train.num_train_epochs": [0.01, 1, 3.5],
    "train.per_device_train_batch_size": [1, 4, 100],
    "train.per_device_eval_batch_size": [1, 16],
    "train.gradient_accumulation_steps": [1, 3, 50],
    "train.learning_rate": [1e-30, 1e-7, 1e-3, 1.0, 1e4, 1e38],
    "train.lr_scheduler_type": ["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"],
    "train.warmup_ratio": [0.0, 0.5, 0.99],
    "train.weight_decay": [0.0, 100],
    "train.max_grad_norm": [0.0, 1e-9, 1e9],
    "train.label_smoothing_factor": [0.0, 0.1, 0.9],
    "train.optim": ["adamw_torch", "adamw_torch_fused", "adafactor"],
    "train.seed": [0, 2**32 - 1],
    "train.precision": ["auto", "bf16", "fp32"],
    "train.base_dropout": [None, 0.0, 0.5, 0.9, 0.999],
    "train.gradient_checkpointing": [True, False],
    "train.eval_every": ["epoch", 1, 7],
    "train.metric_for_best_model": ["loss", "rouge1", "exact_match", "chrf", "meteor", "accuracy", "valid"],
    "train.early_stopping_patience": [None, 1],
    "train.save_total_limit": [1, 3],
    "train.logging_steps": [1, 100],
    "generate.max_new_tokens": [1, 3],
    "generate.min_new_tokens": [0, 1, 3],
    "generate.num_beams": [1, 3],
    "generate.length_penalty": [-1.0, 2.0],
    "generate.do_sample": [True, False],
    "generate.temperature": [0.01, 5.0],
    "generate.top_k": [1, 50],
    "generate.top_p": [0.1, 1.0],
    "generate.no_repeat_ngram_size": [0, 1, 2],
    "generate.repetition_penalty": [0.5, 1.5],
    "generate.constrained": [True, False],
    "evaluate.metrics": [["rouge"], ["exact_match", "f1"], ["bleu", "chrf"], ["rougeSU4"], ["classification"]],
    "evaluate.metric": ["rouge1", "f1", "bleu", "rougeLsum", "macro_f1"],
    "evaluate.language": ["en", "de", "zh"],
    "evaluate.stop_words": [True, False],
    "evaluate.use_stemmer": [True, False],
    "data.oversample": [True, False],
    "data.skip_empty": [True, False],
    "data.validation": [None, "validation.jsonl"],
    "data.test": [None],
    "data.split": [{"validation": 0.1}, {"validation": 0.5, "test": 0.4}, {"validation": 0.01}, None],
    "data.limit": [{}, {"train": 1}, {"train": 3, "validation": 1}],
    "method": ["lora", "full"],
    "codec": ["text", "json"],
    "labels": ["auto", ["red", "green"]],
    "lengths.source": [8, 48],
    "lengths.target": [2, 6, 24],
    "lengths.long_targets": ["cut", "drop"],
}
CHANGES = st.lists(
    st.sampled_from([(key, value) for key, values in VALUES.items() for value in values]),
    min_size=1,
    max_size=6,
    unique_by=lambda change: change[0],
)


@pytest.mark.slow
@settings(max_examples=TRIES, suppress_health_check=list(HealthCheck))
@given(changes=CHANGES)
def test_accepted_tasks_train(
    changes: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory, tiny_base: Path
) -> None:
    root = tmp_path_factory.mktemp("accepted")
    path = write_task(root, tiny_base, rows=8)
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes] + ["train.max_steps=1"]
    try:
        accepted = not validate(str(path), overrides).errors
    except InvalidTaskError:
        accepted = False
    if not accepted:
        return
    try:
        run = train(load_task(path, overrides), root / "run")
    except LoraFtError as error:
        assert RESOURCES.search(str(error)), str(error)
    else:
        assert run.metrics["steps"] == 1

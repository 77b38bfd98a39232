"""Plan of a training run, computed before it starts: rows, steps, precision, compiling, padding."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_ft.data.batching import Encoded, padding_share
from lora_ft.models.adapters import has_frozen_encoder, meta_model, parameter_counts
from lora_ft.models.quantization import require_quantization
from lora_ft.tasks.schema import Task
from lora_ft.training.compute_dtype import ComputeDtype, choose_compute_dtype
from lora_ft.training.encoder_states import distinct_prompts, states_bytes, states_fit

if TYPE_CHECKING:
    from collections.abc import Sequence

# Measured with FLAN-T5-small and mixed lengths. On two CPU cores in fp32: 2.8 samples/s instead of 2.6, after 205 s.
_COMPILE_SECONDS = 300.0
_COMPILE_SPEEDUP, _COMPILE_SPEEDUP_ON_CPU = 1.45, 1.1
# Speed of an uncompiled training step, as a share of a matrix product's speed.
_STEP_EFFICIENCY = 0.7


@dataclass(frozen=True)
class Choices:
    """Choices that depend on the machine and its load, and must not change when a run is resumed."""

    precision: ComputeDtype
    compile: bool


@dataclass(frozen=True)
class Plan:
    """Plan of one training run.

    Attributes:
        device: "cpu", "cuda" or "mps".
        precision: Precision of the steps.
        compile, compile_reason: True if the model is compiled, and the reason for the choice.
        steps, steps_per_epoch: Optimizer steps, in all and per epoch.
        global_batch: Rows per optimizer step over all processes.
        warmup_steps: Number of `steps` that warm up the learning rate.
        trainable, parameters: Number of trained parameters, and of all parameters.
        padding: Share of an epoch's positions that is padding.
        states: Numbers in the encoder states of all distinct prompts. 0 if they change, or in several processes.
    """

    device: str
    precision: ComputeDtype
    compile: bool
    compile_reason: str
    steps: int
    steps_per_epoch: int
    global_batch: int
    warmup_steps: int
    trainable: int
    parameters: int
    padding: float
    states: int

    @property
    def keeps_states(self) -> bool:
        """True if later epochs take encoder states from memory, see `encoder_states`. Not measured on GPUs."""
        repeats = self.steps > self.steps_per_epoch
        return self.device == "cpu" and repeats and self.states > 0 and states_fit(self.states, packed=self.packed)

    @property
    def kept_bytes(self) -> int:
        """Memory of the encoder states that are kept, in bytes."""
        return states_bytes(self.states, packed=self.packed) if self.keeps_states else 0

    @property
    def packed(self) -> bool:
        """True if the model trains on packed rows, see `packed_stack`."""
        return self.device == "cpu" and self.precision.is_bf16 and not self.compile

    def lines(self) -> list[str]:
        """Return a description of the plan, as lines of text."""
        return [
            f"{self.trainable:,} of {self.parameters:,} parameters trained ({self.trainable / self.parameters:.1%})",
            f"{self.steps:,} steps of {self.global_batch} rows ({self.steps_per_epoch:,} an epoch), "
            f"{self.padding:.0%} padding",
            f"precision {self.precision.name}: {self.precision.reason}",
            f"compile {'on' if self.compile else 'off'}: {self.compile_reason}",
            *(["encoder run once per prompt: the adapter leaves it as it is"] if self.keeps_states else []),
        ]


def make_plan(
    task: Task, config: dict[str, Any], rows: Sequence[Encoded], processes: int = 1, started: Choices | None = None
) -> Plan:
    """Return the plan for training a task on encoded rows.

    Args:
        task: Task to train.
        config: Content of the base's config.json.
        rows: Encoded training rows.
        processes: Number of processes that share the work.
        started: Choices of the run when it began, or None for a new run.

    Raises:
        UsageError: A setting of `lora` is not supported by the base or this machine.
    """
    train = task.train
    if task.lora.quantization:
        require_quantization(task.lora.quantization)
    device = training_device()
    precision = started.precision if started else choose_compute_dtype(train.precision, device)
    global_batch = train.per_device_train_batch_size * train.gradient_accumulation_steps * processes
    per_epoch = math.ceil(len(rows) / global_batch)
    steps = train.max_steps or math.ceil(train.num_train_epochs * per_epoch)
    model = meta_model(config, task.lora if task.method == "lora" else None)
    trainable, parameters = parameter_counts(model)
    is_fixed = processes == 1 and not task.base_dropout and has_frozen_encoder(model)
    epochs = steps / per_epoch
    tokens = sum(len(row.input_ids) * min(epochs, 1 if is_fixed else epochs) + len(row.labels) * epochs for row in rows)
    compiled, reason = (
        (started.compile, "as when this run began")
        if started
        else _choose_compile(
            train.compile, device, precision, parameters * tokens, processes, quantized=bool(task.lora.quantization)
        )
    )
    return Plan(
        device=device,
        precision=precision,
        compile=compiled,
        compile_reason=reason,
        steps=steps,
        steps_per_epoch=per_epoch,
        global_batch=global_batch,
        warmup_steps=round(train.warmup_ratio * steps),
        trainable=trainable,
        parameters=parameters,
        padding=padding_share(rows, global_batch, train.per_device_train_batch_size, train.seed),
        states=sum(map(len, distinct_prompts(rows))) * config["d_model"] if is_fixed else 0,
    )


def training_device() -> str:
    """Return the device for training: "cuda", "mps" or "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _choose_compile(
    setting: str, device: str, precision: ComputeDtype, work: float, processes: int, *, quantized: bool = False
) -> tuple[bool, str]:
    """Return True to compile the model, and the reason. `work` is parameters times tokens of the whole plan."""
    if setting != "auto":
        return setting == "on", "set by the task"
    if quantized:
        return False, "untested on a quantized base"
    if processes > 1:
        return False, "auto decides for one process only; set train.compile=on to compile in all of them"
    if device == "mps":
        return False, "untested on this device"
    if (
        device == "cpu" and precision.is_bf16
    ):  # packed rows: 8.2 samples/s instead of 5.8 with FLAN-T5-small on DialogSum
        return False, "in bf16 on a CPU, uncompiled steps are faster, since they leave out padding"
    if device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return False, "no C++ compiler is installed"
    seconds = 2 * work / _measured_flops(device, precision)
    saved = seconds * (1 - 1 / (_COMPILE_SPEEDUP_ON_CPU if device == "cpu" else _COMPILE_SPEEDUP))
    estimate = f"about {_minutes(seconds)} of training, of which it saves {_minutes(saved)}"
    if saved > 1.5 * _COMPILE_SECONDS:
        return True, f"{estimate}, for {_minutes(_COMPILE_SECONDS)} of compiling"
    return False, f"{estimate}; compiling alone takes {_minutes(_COMPILE_SECONDS)}"


def _measured_flops(device: str, precision: ComputeDtype) -> float:
    """Return the expected speed of an uncompiled step, in FLOP/s, from timing a matrix product."""
    import torch

    dtype = torch.bfloat16 if precision.is_bf16 else torch.float32
    a, b = torch.ones(2048, 512, dtype=dtype, device=device), torch.ones(512, 1024, dtype=dtype, device=device)
    best = math.inf
    for _ in range(60):  # the best of 60, since other processes may use the machine
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return _STEP_EFFICIENCY * 2 * 2048 * 512 * 1024 / best


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"

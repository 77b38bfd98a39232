"""Estimate the memory of training and generation from the shape of a T5, without loading it.

Training holds, in bytes (P parameters, T of them trained):

    weights      4 P (float32); under bf16 autocast 2 more per weight of a matrix product, whose bf16 copy is kept for
                 the backward pass; a linear layer of an 8-bit or 4-bit base takes 1 or 0.5 per weight instead
    gradients    4 T
    optimizer    8 T for AdamW's two moments; almost none with Adafactor, which keeps means of rows and columns
    activations  tensors that autograd keeps for the backward pass (`activation_bytes`), and twice the logits in
                 float32: the log-probabilities, and at the same time the logits or their gradient

Attention is assumed to be eager matrix products, which keep the s x s weights of every head; fused kernels need less.
With gradient checkpointing a layer keeps only its input, and one layer at a time is recomputed.

Measured on two steps of FLAN-T5-small (LoRA r 16 on all linear layers, one thread, torch 2.13; peak resident memory
above that of the imported packages, MiB). "mapped" maps every block by itself (MALLOC_MMAP_THRESHOLD_=65536), which
shows the memory in use; "by default" is glibc's heap, which fragments (`HEAP`):

    rows x tokens in, out     formula       mapped   by default
    8 x 256, 64    fp32         1,511          1,578        2,404
    4 x 512, 128   fp32         1,637                       2,832
    8 x 256, 64    bf16         1,369                       2,115
    4 x 512, 128   bf16         1,534          1,635        2,243

Packed rows (`packed_stack`) need less. Peak resident memory of the whole process, two threads, MiB:

    rows x tokens in, out     formula     measured
    8 x 256, 64    bf16         1,881        1,713
    4 x 512, 128   bf16         2,046        1,729
    8 x 512, 128   bf16         3,132        2,466
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Task

GIB = 2**30
HEAP = 1.8  # factor by which a CPU process's heap exceeds the memory of the activations, from fragmentation
# Resident memory before a model is loaded: Python, torch, transformers and peft. A CUDA context takes about as much.
RUNTIME = GIB // 2
_BUCKETS = 32  # relative-position buckets


@dataclass(frozen=True)
class Shape:
    """Dimensions of a T5, named as in its config.json."""

    d_model: int
    d_ff: int
    num_heads: int
    num_layers: int
    num_decoder_layers: int
    d_kv: int = 64
    vocab_size: int = 32128
    gated: bool = True
    tied: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Return the shape that a config.json describes."""
        return cls(
            **{name: config[name] for name in ("d_model", "d_ff", "num_heads", "num_layers", "d_kv", "vocab_size")},
            num_decoder_layers=config.get("num_decoder_layers") or config["num_layers"],
            gated=str(config.get("feed_forward_proj", "relu")).startswith("gated"),
            tied=config.get("tie_word_embeddings", True) is not False,
        )

    @property
    def inner(self) -> int:
        """Total width of all heads."""
        return self.num_heads * self.d_kv

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(input width, output width) of every linear layer except the head."""
        d, inner, ff = self.d_model, self.inner, self.d_ff
        attention = [(d, inner)] * 3 + [(inner, d)]
        feed_forward = [(d, ff)] * (2 if self.gated else 1) + [(ff, d)]
        return (attention + feed_forward) * self.num_layers + (2 * attention + feed_forward) * self.num_decoder_layers

    @property
    def products(self) -> int:
        """Number of weights in matrix products, including the head."""
        return sum(a * b for a, b in self.matrices) + self.vocab_size * self.d_model

    @property
    def parameters(self) -> int:
        """Total number of parameters: embedding, head, linear layers, norms and relative-position biases."""
        embeddings = self.vocab_size * self.d_model * (1 if self.tied else 2)
        norms = self.d_model * (2 * self.num_layers + 3 * self.num_decoder_layers + 2)
        return embeddings + sum(a * b for a, b in self.matrices) + norms + 2 * _BUCKETS * self.num_heads

    def lora(self, rank: int) -> int:
        """Return the number of parameters of an adapter on all linear layers except the head."""
        return rank * sum(a + b for a, b in self.matrices)


# From the config.json of google/flan-t5-small, -base, -large, -xl and -xxl on the Hub.
FLAN = {
    "small": Shape(d_model=512, d_ff=1024, num_heads=6, num_layers=8, num_decoder_layers=8),
    "base": Shape(d_model=768, d_ff=2048, num_heads=12, num_layers=12, num_decoder_layers=12),
    "large": Shape(d_model=1024, d_ff=2816, num_heads=16, num_layers=24, num_decoder_layers=24),
    "xl": Shape(d_model=2048, d_ff=5120, num_heads=32, num_layers=24, num_decoder_layers=24),
    "xxl": Shape(d_model=4096, d_ff=10240, num_heads=64, num_layers=24, num_decoder_layers=24),
}


@dataclass(frozen=True)
class Batch:
    """Size of a batch: rows, and the longest prompt and target, in tokens."""

    rows: int
    source: int
    target: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of each kind; `total` adds `RUNTIME`."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return RUNTIME + self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class StepOptions:
    """Options of a training step that change its memory.

    Attributes:
        rank: Rank of LoRA; 0 for full fine-tuning.
        adapter: Number of trained parameters; 0 for LoRA on all linear layers, or for all parameters if the rank is 0.
        bf16: True if the step computes under bf16 autocast.
        checkpointing: True if activations are recomputed in the backward pass.
        cpu: True if the step runs on a CPU, where fragmentation makes the heap larger than the memory in use. Packed
            rows are an exception.
        bits: Bits per weight of the frozen base's linear layers: 32, 8 or 4.
        factored: True if the optimizer is Adafactor.
    """

    rank: int = 0
    adapter: int = 0
    bf16: bool = False
    checkpointing: bool = False
    cpu: bool = False
    bits: int = 32
    factored: bool = False


def training_memory(shape: Shape, batch: Batch, options: StepOptions = StepOptions()) -> MemoryEstimate:
    """Return the memory of a training step.

    Args:
        shape: Shape of the model.
        batch: Largest batch.
        options: Options of the step.
    """
    rank, bits, bf16 = options.rank, options.bits, options.bf16
    trained = options.adapter or (shape.lora(rank) if rank else shape.parameters)
    linear = sum(a * b for a, b in shape.matrices)
    weights = 4 * (shape.parameters + (trained if rank else 0)) - (32 - bits) * linear // 8
    products = shape.products if bits == 32 else shape.products - linear
    logits = batch.rows * batch.target * shape.vocab_size
    activations = activation_bytes(shape, batch, rank=rank, bf16=bf16)
    if options.checkpointing:
        sides = ((shape.num_layers, batch.source), (shape.num_decoder_layers, batch.target))
        inputs = sum(4 * layers * batch.rows * length * shape.d_model for layers, length in sides)
        activations = inputs + max(
            activation_bytes(layer, batch, rank=rank, bf16=bf16) for layer in _single_layers(shape)
        )
    return MemoryEstimate(
        weights=weights + (2 * products if bf16 else 0),
        gradients=4 * trained,
        optimizer=0 if options.factored else 8 * trained,
        activations=round((activations + (10 if bf16 else 8) * logits) * (HEAP if options.cpu else 1)),
    )


def activation_bytes(shape: Shape, batch: Batch, *, rank: int, bf16: bool) -> int:
    """Return the bytes of activations that autograd keeps, except those of the head.

    Counted from transformers' T5 with `saved_tensors_hooks`. For each position: the input of every norm (float32) and
    its output, once per product that reads it under autocast; queries, keys, values and their sum; the hidden layer
    of the feed-forward block (7 times if it is gated, since GELU is written out); and a row of LoRA's rank per
    product. For each pair of positions: the attention weights of every head, and again in bf16.
    """
    width = 2 if bf16 else 4
    d, inner, heads = shape.d_model, shape.inner, shape.num_heads
    copies = 7 if shape.gated else 2
    matrices = 7 if shape.gated else 6
    both = batch.rows * batch.source * shape.num_layers, batch.rows * batch.target * shape.num_decoder_layers
    encoder, decoder = both
    cross = batch.rows * batch.source * shape.num_decoder_layers
    norms = 4 * d * (2 * encoder + 3 * decoder) * (1 if rank else 2)  # full fine-tuning also keeps the normalized input
    reads = 2 * encoder + 3 * decoder
    if bf16:
        reads = (matrices - 2) * encoder + (matrices - 1) * decoder + 2 * cross
    attention = inner * (4 * encoder + 6 * decoder + 2 * cross)
    hidden = shape.d_ff * copies * (encoder + decoder)
    lora = rank * (matrices * encoder + (matrices + 2) * decoder + 2 * cross)
    in_self, in_cross = (6, 2) if bf16 else (4, 4)
    pairs = heads * (in_self * (encoder * batch.source + decoder * batch.target) + in_cross * decoder * batch.source)
    return norms + width * (d * reads + attention + hidden + lora) + pairs


def generation_memory(shape: Shape, batch: Batch, *, bf16: bool = False) -> MemoryEstimate:
    """Return the memory of generation: weights, key-value cache, and the encoder's widest layer or the logits."""
    width = 2 if bf16 else 4
    cache = 2 * shape.num_decoder_layers * shape.inner * (batch.source + batch.target)
    layer = batch.source * (3 * shape.d_ff + 4 * shape.d_model) + 2 * shape.num_heads * batch.source**2
    widest = max(layer, shape.vocab_size)
    return MemoryEstimate(width * shape.parameters, 0, 0, width * batch.rows * (cache + widest))


def _single_layers(shape: Shape) -> tuple[Shape, Shape]:
    return replace(shape, num_decoder_layers=0, num_layers=1), replace(shape, num_layers=0, num_decoder_layers=1)


def task_batch(task: Task) -> Batch:
    """Return the largest batch that a task's limits allow in training."""
    return Batch(task.train.per_device_train_batch_size, task.lengths.source, task.lengths.target)


def task_memory(task: Task, shape: Shape, batch: Batch, adapter: int, *, bf16: bool, cpu: bool) -> MemoryEstimate:
    """Return the memory of a task's training step; `adapter` is the number of trained parameters."""
    return training_memory(shape, batch, _step_options(task, shape, adapter, bf16=bf16, cpu=cpu))


@dataclass(frozen=True)
class ModelSize:
    """Total memory of one FLAN-T5 under a task's limits, in bytes, for each use.

    Attributes:
        name: Size name: "small" to "xxl".
        parameters: Number of parameters.
        generate, lora, full: Bytes in float32 and in bf16.
        checkpointed: Bytes of LoRA and of full fine-tuning in bf16 with gradient checkpointing.
    """

    name: str
    parameters: int
    generate: tuple[int, int]
    lora: tuple[int, int]
    full: tuple[int, int]
    checkpointed: tuple[int, int]


def model_sizes(task: Task) -> list[ModelSize]:
    """Return the memory of every FLAN-T5 under a task's batch, lengths and LoRA rank."""
    batch, rank = task_batch(task), task.lora.r
    rows = []
    for name, shape in FLAN.items():
        both = lambda estimate: (estimate(False), estimate(True))  # noqa: E731
        rows.append(
            ModelSize(
                name,
                shape.parameters,
                generate=both(lambda bf16, shape=shape: generation_memory(shape, batch, bf16=bf16).total),
                lora=both(lambda bf16, shape=shape: training_memory(shape, batch, StepOptions(rank, bf16=bf16)).total),
                full=both(lambda bf16, shape=shape: training_memory(shape, batch, StepOptions(bf16=bf16)).total),
                checkpointed=both(
                    lambda full, shape=shape: (
                        training_memory(
                            shape, batch, StepOptions(0 if full else rank, bf16=True, checkpointing=True)
                        ).total
                    )
                ),
            )
        )
    return rows


def suggest_smaller(task: Task, shape: Shape, batch: Batch, adapter: int, *, bf16: bool, cpu: bool, room: int) -> str:
    """Return a remedy for a task that needs more than `room` bytes: settings or a base with which it would fit."""
    train = task.train
    options = _step_options(task, shape, adapter, bf16=bf16, cpu=cpu)

    def total(rows: int, *, checkpointing: bool) -> int:
        return training_memory(shape, replace(batch, rows=rows), replace(options, checkpointing=checkpointing)).total

    remedies = []
    for checkpointing in dict.fromkeys((options.checkpointing, True)):
        rows = batch.rows
        while rows > 1 and total(rows, checkpointing=checkpointing) > room:
            rows //= 2
        if total(rows, checkpointing=checkpointing) <= room:
            settings = ["train.gradient_checkpointing=true"] if checkpointing and not options.checkpointing else []
            if rows < batch.rows:
                steps = train.gradient_accumulation_steps * batch.rows // rows
                settings += [f"train.per_device_train_batch_size={rows}", f"train.gradient_accumulation_steps={steps}"]
            remedies.append(" ".join(settings))
    smaller = [
        name
        for name, candidate in FLAN.items()
        if candidate.parameters < shape.parameters
        and training_memory(candidate, batch, replace(options, adapter=0)).total <= room
    ]
    remedies += [f"base=google/flan-t5-{name}" for name in smaller[-1:]]
    commands = [f"--set {settings.replace(' ', ' --set ')}" for settings in remedies]
    return "; or ".join(commands) or "use a machine with more memory"


def _step_options(task: Task, shape: Shape, adapter: int, *, bf16: bool, cpu: bool) -> StepOptions:
    """Return the options of a task's training step; `adapter` is the number of trained parameters."""
    quantization = task.lora.quantization if task.method == "lora" else None
    return StepOptions(
        rank=0 if adapter >= shape.parameters else task.lora.r,
        adapter=adapter,
        bf16=bf16,
        checkpointing=task.train.gradient_checkpointing,
        cpu=cpu,
        bits=32 if quantization is None else int(quantization.removesuffix("bit")),
        factored=task.train.optim == "adafactor",
    )

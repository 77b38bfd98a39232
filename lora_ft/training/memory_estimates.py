"""What a T5 of some shape weighs, and the memory that training and generation take: formulas, nothing is loaded.

Training holds, in bytes (P parameters, T of them trained):

    weights      4 P, as they stay float32; under bf16 autocast also 2 for each weight of a product, which keeps what it
                 was cast to for the backward pass; a linear layer of a base in 8 or 4 bits takes 1 or 0.5 for each
                 weight instead, and a few scales
    gradients    4 T
    optimizer    8 T, AdamW's two moments; next to nothing with Adafactor, which keeps their rows' and columns' means
    activations  what autograd keeps for the backward pass (`activation_bytes`), and twice the logits in float32: the
                 log-probabilities, with the logits before and their gradient after

Attention is taken as eager matrix products, which keep every head's s x s weights; fused kernels need less. With
gradient checkpointing a layer keeps its input alone, and one layer at a time is computed anew.

Measured on two steps of FLAN-T5-small (LoRA r 16 on all linear layers, one thread, torch 2.13; peak of resident memory
over that of the imported packages, MiB), with a mapping for every block (MALLOC_MMAP_THRESHOLD_=65536), which shows
what is in use, and as glibc does by default, where the heap has holes (`HEAP`):

    rows x tokens in, out     formula       mapped   by default
    8 x 256, 64    fp32         1,511          1,578        2,404
    4 x 512, 128   fp32         1,637                       2,832
    8 x 256, 64    bf16         1,369                       2,115
    4 x 512, 128   bf16         1,534          1,635        2,243
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Task

GIB = 2**30
HEAP = 1.8  # times as much as the activations need is what the heap of a process on a CPU grows to
# Resident before any model is loaded: Python, torch, transformers and peft. A CUDA context takes about as much.
RUNTIME = GIB // 2
_BUCKETS = 32  # of relative positions


@dataclass(frozen=True)
class Shape:
    """The dimensions of a T5, by the names of its config.json."""

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
        """From a config.json."""
        return cls(
            **{name: config[name] for name in ("d_model", "d_ff", "num_heads", "num_layers", "d_kv", "vocab_size")},
            num_decoder_layers=config.get("num_decoder_layers") or config["num_layers"],
            gated=str(config.get("feed_forward_proj", "relu")).startswith("gated"),
            tied=config.get("tie_word_embeddings", True) is not False,
        )

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.d_kv

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(width in, width out) of every linear layer but the head."""
        d, inner, ff = self.d_model, self.inner, self.d_ff
        attention = [(d, inner)] * 3 + [(inner, d)]
        feed_forward = [(d, ff)] * (2 if self.gated else 1) + [(ff, d)]
        return (attention + feed_forward) * self.num_layers + (2 * attention + feed_forward) * self.num_decoder_layers

    @property
    def products(self) -> int:
        """Weights of all matrix products, the head's too."""
        return sum(a * b for a, b in self.matrices) + self.vocab_size * self.d_model

    @property
    def parameters(self) -> int:
        """How many in all: embedding, head, linear layers, norms, and the biases of relative positions."""
        embeddings = self.vocab_size * self.d_model * (1 if self.tied else 2)
        norms = self.d_model * (2 * self.num_layers + 3 * self.num_decoder_layers + 2)
        return embeddings + sum(a * b for a, b in self.matrices) + norms + 2 * _BUCKETS * self.num_heads

    def lora(self, rank: int) -> int:
        """Parameters of an adapter on all linear layers but the head."""
        return rank * sum(a + b for a, b in self.matrices)


# From the config.json of google/flan-t5-small, -base, -large, -xl and -xxl on the hub.
FLAN = {
    "small": Shape(d_model=512, d_ff=1024, num_heads=6, num_layers=8, num_decoder_layers=8),
    "base": Shape(d_model=768, d_ff=2048, num_heads=12, num_layers=12, num_decoder_layers=12),
    "large": Shape(d_model=1024, d_ff=2816, num_heads=16, num_layers=24, num_decoder_layers=24),
    "xl": Shape(d_model=2048, d_ff=5120, num_heads=32, num_layers=24, num_decoder_layers=24),
    "xxl": Shape(d_model=4096, d_ff=10240, num_heads=64, num_layers=24, num_decoder_layers=24),
}


@dataclass(frozen=True)
class Batch:
    """How much is computed at once: rows, and tokens of the longest prompt and target."""

    rows: int
    source: int
    target: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of each kind; `RUNTIME` comes on top."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return RUNTIME + self.weights + self.gradients + self.optimizer + self.activations


def training_memory(
    shape: Shape,
    batch: Batch,
    *,
    rank: int = 0,
    adapter: int = 0,
    bf16: bool = False,
    checkpointing: bool = False,
    cpu: bool = False,
    bits: int = 32,
    factored: bool = False,
) -> MemoryEstimate:
    """Memory of a training step.

    Args:
        shape: of the model.
        batch: the largest one.
        rank: of LoRA; 0 for full fine-tuning.
        adapter: parameters trained; by default those of LoRA on all linear layers, or all where the rank is 0.
        bf16: the step computes under bf16 autocast.
        checkpointing: activations are computed anew in the backward pass.
        cpu: it runs on a CPU, where the heap grows beyond what is in use.
        bits: of a weight of the frozen base's linear layers: 32, 8 or 4.
        factored: the optimizer is Adafactor.
    """
    trained = adapter or (shape.lora(rank) if rank else shape.parameters)
    linear = sum(a * b for a, b in shape.matrices)
    weights = 4 * (shape.parameters + (trained if rank else 0)) - (32 - bits) * linear // 8
    products = shape.products if bits == 32 else shape.products - linear
    logits = batch.rows * batch.target * shape.vocab_size
    kept = activation_bytes(shape, batch, rank=rank, bf16=bf16)
    if checkpointing:
        sides = ((shape.num_layers, batch.source), (shape.num_decoder_layers, batch.target))
        inputs = sum(4 * layers * batch.rows * length * shape.d_model for layers, length in sides)
        kept = inputs + max(activation_bytes(one, batch, rank=rank, bf16=bf16) for one in _single_layers(shape))
    return MemoryEstimate(
        weights=weights + (2 * products if bf16 else 0),
        gradients=4 * trained,
        optimizer=0 if factored else 8 * trained,
        activations=round((kept + (10 if bf16 else 8) * logits) * (HEAP if cpu else 1)),
    )


def activation_bytes(shape: Shape, batch: Batch, *, rank: int, bf16: bool) -> int:
    """Bytes of activations that autograd keeps, but for the head's.

    Counted from transformers' T5 with `saved_tensors_hooks`. Of each position: the input of every norm (float32) and
    its output, once for each product that reads it under autocast; queries, keys, values and their sum; the hidden
    layer of the feed-forward part (7 times where it is gated: GELU is written out); a row of LoRA's rank for each
    product. Of each pair of positions: the attention weights of every head, in bf16 once more.
    """
    width = 2 if bf16 else 4
    d, inner, heads = shape.d_model, shape.inner, shape.num_heads
    copies = 7 if shape.gated else 2
    matrices = 7 if shape.gated else 6
    both = batch.rows * batch.source * shape.num_layers, batch.rows * batch.target * shape.num_decoder_layers
    encoder, decoder = both
    cross = batch.rows * batch.source * shape.num_decoder_layers
    norms = 4 * d * (2 * encoder + 3 * decoder) * (1 if rank else 2)  # all trained: also what the norm's weight scales
    reads = 2 * encoder + 3 * decoder
    if bf16:
        reads = (matrices - 2) * encoder + (matrices - 1) * decoder + 2 * cross
    attention = inner * (4 * encoder + 6 * decoder + 2 * cross)
    hidden = shape.d_ff * copies * (encoder + decoder)
    lora = rank * (matrices * encoder + (matrices + 2) * decoder + 2 * cross)
    own, across = (6, 2) if bf16 else (4, 4)
    pairs = heads * (own * (encoder * batch.source + decoder * batch.target) + across * decoder * batch.source)
    return norms + width * (d * reads + attention + hidden + lora) + pairs


def generation_memory(shape: Shape, batch: Batch, *, bf16: bool = False) -> MemoryEstimate:
    """Memory of generating: weights, keys and values of every layer, and the encoder's widest layer or the logits."""
    width = 2 if bf16 else 4
    cache = 2 * shape.num_decoder_layers * shape.inner * (batch.source + batch.target)
    layer = batch.source * (3 * shape.d_ff + 4 * shape.d_model) + 2 * shape.num_heads * batch.source**2
    widest = max(layer, shape.vocab_size)
    return MemoryEstimate(width * shape.parameters, 0, 0, width * batch.rows * (cache + widest))


def _single_layers(shape: Shape) -> tuple[Shape, Shape]:
    return replace(shape, num_decoder_layers=0, num_layers=1), replace(shape, num_layers=0, num_decoder_layers=1)


def task_batch(task: Task) -> Batch:
    """The largest batch that a task may train on, by its limits."""
    return Batch(task.train.per_device_train_batch_size, task.lengths.source, task.lengths.target)


def task_memory(task: Task, shape: Shape, batch: Batch, adapter: int, *, bf16: bool, cpu: bool) -> MemoryEstimate:
    """Memory of a task's training step; `adapter` are the parameters that it trains."""
    return training_memory(
        shape,
        batch,
        rank=_rank(shape, adapter, task),
        adapter=adapter,
        bf16=bf16,
        cpu=cpu,
        checkpointing=task.train.gradient_checkpointing,
        **_storage(task),
    )


@dataclass(frozen=True)
class ModelSize:
    """One FLAN-T5 under a task's limits: total bytes of each way to use it, by what it computes in.

    Attributes:
        name: of FLAN.
        parameters: how many.
        generate, lora, full: float32, then bf16.
        checkpointed: LoRA and full fine-tuning in bf16 with gradient checkpointing.
    """

    name: str
    parameters: int
    generate: tuple[int, int]
    lora: tuple[int, int]
    full: tuple[int, int]
    checkpointed: tuple[int, int]


def model_sizes(task: Task) -> list[ModelSize]:
    """Every FLAN-T5 under a task's batch, lengths and rank of LoRA."""
    batch, rank = task_batch(task), task.lora.r
    rows = []
    for name, shape in FLAN.items():
        both = lambda make: (make(False), make(True))  # noqa: E731
        rows.append(
            ModelSize(
                name,
                shape.parameters,
                generate=both(lambda bf16, shape=shape: generation_memory(shape, batch, bf16=bf16).total),
                lora=both(lambda bf16, shape=shape: training_memory(shape, batch, rank=rank, bf16=bf16).total),
                full=both(lambda bf16, shape=shape: training_memory(shape, batch, bf16=bf16).total),
                checkpointed=both(
                    lambda full, shape=shape: (
                        training_memory(shape, batch, rank=0 if full else rank, bf16=True, checkpointing=True).total
                    )
                ),
            )
        )
    return rows


def suggest_smaller(task: Task, shape: Shape, batch: Batch, adapter: int, *, bf16: bool, cpu: bool, room: int) -> str:
    """What a task that needs more than `room` bytes to train could change to need less, as a remedy to print."""
    train = task.train
    rank, checkpointing = _rank(shape, adapter, task), train.gradient_checkpointing

    def need(shape: Shape, batch: Batch, checkpointing: bool, adapter: int = 0) -> int:
        return training_memory(
            shape, batch, rank=rank, adapter=adapter, bf16=bf16, checkpointing=checkpointing, cpu=cpu, **_storage(task)
        ).total

    found = []
    for recompute in dict.fromkeys((checkpointing, True)):
        rows = batch.rows
        while rows > 1 and need(shape, replace(batch, rows=rows), recompute, adapter) > room:
            rows //= 2
        if need(shape, replace(batch, rows=rows), recompute, adapter) <= room:
            changes = ["train.gradient_checkpointing=true"] if recompute and not checkpointing else []
            if rows < batch.rows:
                steps = train.gradient_accumulation_steps * batch.rows // rows
                changes += [f"train.per_device_train_batch_size={rows}", f"train.gradient_accumulation_steps={steps}"]
            found.append(" ".join(changes))
    smaller = [
        name
        for name, other in FLAN.items()
        if other.parameters < shape.parameters and need(other, batch, checkpointing) <= room
    ]
    found += [f"base=google/flan-t5-{name}" for name in smaller[-1:]]
    ways = [f"--set {changes.replace(' ', ' --set ')}" for changes in found]
    return "; or ".join(ways) or "no smaller batch or size does"


def _rank(shape: Shape, adapter: int, task: Task) -> int:
    """Of the task's LoRA; 0 where all parameters are trained."""
    return 0 if adapter >= shape.parameters else task.lora.r


def _storage(task: Task) -> dict[str, Any]:
    """How the task stores a frozen base and the optimizer's state, as arguments of `training_memory`."""
    quantization = task.lora.quantization if task.method == "lora" else None
    return {
        "bits": 32 if quantization is None else int(quantization.removesuffix("bit")),
        "factored": task.train.optim == "adafactor",
    }

"""The stacks of a T5 in numpy, whose weights and inputs are rounded as the kernel rounds them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

LAYER = 6  # matrices of a layer


@dataclass
class Layer:
    """A linear layer: rounded weights [inputs, outputs], and how its input is rounded.

    Attributes:
        weight: Weights.
        group: Inputs that share a scale, or 0 for a scale of the whole row.
        step: Fixed scale, or 0.
    """

    weight: np.ndarray
    group: int
    step: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        groups = x.reshape(*x.shape[:-1], -1, self.group or x.shape[-1])
        steps = np.float32(self.step) or np.maximum(np.abs(groups).max(-1, keepdims=True) / 127, 1e-12)
        rounded = np.clip(np.rint(groups / steps), -128, 127) * steps
        return rounded.reshape(x.shape) @ self.weight


def addition(change: Any, x: np.ndarray) -> np.ndarray:
    """Return what an adapter's change of a layer adds to the layer's product of x [n, inputs]."""
    parts, rank, _ = change.b.shape
    per_row = np.maximum(np.abs(x).max(-1, keepdims=True) / 127, 1e-12)
    rounded = np.clip(np.rint(x / (change.step or per_row)), -128, 127)
    inner = np.clip(np.rint(rounded @ change.a.astype(float) * change.a_scale * (change.step or 1)), -128, 127)
    outer = np.einsum("npr,prw->npw", inner.reshape(-1, parts, rank), change.b.astype(float)).reshape(len(x), -1)
    return outer * change.b_scale * (1 if change.step else per_row)


@dataclass
class Decoder:
    """A random decoder and its arguments for the package.

    Args:
        package: The package lora_ft_kernels.
        sizes: Its `Sizes`.
        bits: Bits of the layers' weights; 8 of the head's.
        group: Inputs that share a scale, or 0.
        seed: Seed of the weights.
    """

    package: Any
    sizes: Any
    bits: int = 8
    group: int = 0
    seed: int = 0
    layers: list[Layer] = field(default_factory=list)

    def __post_init__(self) -> None:
        s, rng = self.sizes, np.random.default_rng(self.seed)
        width, wide = s.heads * s.d_kv, s.d_ff * (2 if s.gated else 1)
        shapes = [(s.d_model, 3 * width), (width, s.d_model), (s.d_model, width)]
        shapes += [(width, s.d_model), (s.d_model, wide), (s.d_ff, s.d_model)]
        matrices = [
            self._matrix(rng, *shape, self.bits, 0.0 if number % LAYER == 5 else 0.03)
            for number, shape in enumerate(shapes * s.layers)
        ]
        matrices.append(self._matrix(rng, s.d_model, s.vocabulary, 8, 0.0))
        self.norms = [rng.uniform(0.5, 1.5, s.d_model).astype(np.float32) for _ in range(3 * s.layers + 1)]
        self.bias = rng.standard_normal((s.heads, s.far + 1)).astype(np.float32)
        embedding = rng.integers(-127, 128, (s.vocabulary, s.d_model)).astype(np.int8)
        scale = rng.uniform(0.005, 0.01, s.vocabulary).astype(np.float32)
        self.embedding = embedding * scale[:, None]
        self.weights = self.package.Weights(matrices, self.norms, [self.bias], embedding, scale, ends=[1, 40])

    def draw_changes(self, seed: int, rank: int) -> dict[int, Any]:
        """Return a random adapter of half the layers."""
        s, rng = self.sizes, np.random.default_rng(seed)
        changes = {}
        for number in rng.permutation(LAYER * s.layers)[: LAYER * s.layers // 2].tolist():
            inputs, outputs = self.layers[number].weight.shape
            parts = {0: 3, 4: 1 + s.gated}.get(number % LAYER, 1)
            a = rng.integers(-63, 64, (inputs, parts * rank)).astype(np.int8)
            b = rng.integers(-63, 64, (parts, rank, outputs // parts)).astype(np.int8)
            # with a scale per row, A's products are in units of it; some of them leave the range of bytes
            step = self.layers[number].step if not self.group else float(rng.choice([0.0, 0.03]))
            a_scale = rng.uniform(0.5, 1.5, parts * rank) / (35 * math.sqrt(inputs)) / (step or 1)
            b_scale = rng.uniform(0.5, 1.5, outputs) / (2000 * math.sqrt(rank)) / (1 if step else 3)
            changes[number] = self.package.LowRank(a, a_scale.astype(np.float32), b, b_scale.astype(np.float32), step)
        return changes

    def _matrix(self, rng: np.random.Generator, inputs: int, outputs: int, bits: int, step: float) -> Any:
        half = 2 ** (bits - 1)
        values = rng.integers(1 - half, half, (outputs, inputs))
        groups = inputs // self.group if self.group else 1
        scales = rng.uniform(0.5, 1.5, (outputs, groups)).astype(np.float32) / np.float32(half * math.sqrt(inputs))
        weight = (values.reshape(outputs, groups, -1) * scales[..., None]).reshape(outputs, inputs).T
        if not self.group:
            self.layers.append(Layer(weight, 0, step))
            return self.package.Matrix(values.T.astype(np.int8), scales[:, 0], step=step)
        self.layers.append(Layer(weight, self.group, 0.0))
        stored = (values + half).astype(np.uint8)
        packed = stored if bits == 8 else stored[:, 0::2] | stored[:, 1::2] << 4
        return self.package.Matrix(packed, scales, bits, self.group)

    def logits(
        self,
        tokens: np.ndarray,
        cross: list[np.ndarray],
        mask: np.ndarray,
        adapters: Sequence[Mapping[int, Any]] = (),
    ) -> np.ndarray:
        """Return the logits [b, n, vocabulary] of tokens [b, n] from the start of each answer.

        Args:
            tokens: The tokens.
            cross: Keys and values of the source of each row, float16 [b, heads, s, d_kv].
            mask: Mask of the sources [b, s].
            adapters: The changes of each row's layers.
        """

        def product(number: int, x: np.ndarray) -> np.ndarray:
            y = self.layers[number](x)
            for row, changes in enumerate(adapters):
                if number in changes:
                    y[row] += addition(changes[number], x[row])
            return y

        s, count = self.sizes, tokens.shape[1]
        distance = np.arange(count)[:, None] - np.arange(count)
        bias = np.where(distance < 0, -np.inf, self.bias[:, np.clip(distance, 0, s.far)])
        x = self.embedding[tokens]
        for i in range(s.layers):
            joined, out, query, cross_out, up, down = (
                partial(product, number) for number in range(LAYER * i, LAYER * (i + 1))
            )
            norms = self.norms[3 * i : 3 * i + 3]
            q, k, v = (self._by_head(part) for part in np.split(joined(self._norm(x, norms[0])), 3, axis=-1))
            x = x + out(self._attention(q, k, v, bias))
            q = self._by_head(query(self._norm(x, norms[1])))
            hidden = np.where(mask[:, None, None] > 0, 0, -np.inf)
            keys, values = (each.astype(np.float32) for each in cross[2 * i : 2 * i + 2])
            x = x + cross_out(self._attention(q, keys, values, hidden))
            x = x + down(self._inner(up(self._norm(x, norms[2]))))
        return self.layers[-1](self._norm(x, self.norms[-1]))

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.sizes.epsilon) * weight

    def _by_head(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], self.sizes.heads, -1).transpose(0, 2, 1, 3)

    def _attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray) -> np.ndarray:
        scores = q @ k.transpose(0, 1, 3, 2) + bias
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = shares / shares.sum(-1, keepdims=True) @ v
        return mixed.transpose(0, 2, 1, 3).reshape(len(q), q.shape[2], -1)

    def _inner(self, x: np.ndarray) -> np.ndarray:
        if not self.sizes.gated:
            return self._activated(x)
        gate, x = np.split(x, 2, axis=-1)
        return self._activated(gate) * x

    def _activated(self, x: np.ndarray) -> np.ndarray:
        match self.sizes.activation:
            case "relu":
                return np.maximum(x, 0)
            case "silu":
                return x / (1 + np.exp(-x))
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@dataclass
class Encoder(Decoder):
    """A random encoder, with the keys and values of three decoder layers."""

    def __post_init__(self) -> None:
        s, rng = self.sizes, np.random.default_rng(self.seed)
        width, wide = s.heads * s.d_kv, s.d_ff * (2 if s.gated else 1)
        shapes = [(s.d_model, 3 * width), (width, s.d_model), (s.d_model, wide), (s.d_ff, s.d_model)]
        matrices = [
            self._matrix(rng, *shape, self.bits, 0.0 if number % 4 == 3 else 0.03)
            for number, shape in enumerate(shapes * s.layers)
        ]
        matrices.append(self._matrix(rng, s.d_model, 6 * width, self.bits, 0.0))
        self.norms = [rng.uniform(0.5, 1.5, s.d_model).astype(np.float32) for _ in range(2 * s.layers + 1)]
        self.biases = [rng.standard_normal((s.heads, 2 * s.far + 1)).astype(np.float32) for _ in range(s.layers)]
        embedding = rng.integers(-127, 128, (s.vocabulary, s.d_model)).astype(np.int8)
        scale = rng.uniform(0.005, 0.01, s.vocabulary).astype(np.float32)
        self.embedding = embedding * scale[:, None]
        self.weights = self.package.Weights(matrices, self.norms, self.biases, embedding, scale, ends=())

    def cross(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the keys and values [6, b, heads, s, d_kv] of sources [b, s]."""
        s, positions = self.sizes, np.arange(ids.shape[1])
        offset = np.clip(positions[:, None] - positions, -s.far, s.far) + s.far
        hidden = np.where(mask[:, None, None] > 0, 0, -np.inf)
        x = self.embedding[ids]
        for i in range(s.layers):
            joined, out, up, down = self.layers[4 * i : 4 * i + 4]
            q, k, v = (self._by_head(part) for part in np.split(joined(self._norm(x, self.norms[2 * i])), 3, axis=-1))
            x = x + out(self._attention(q, k, v, self.biases[i][:, offset] + hidden))
            x = x + down(self._inner(up(self._norm(x, self.norms[2 * i + 1]))))
        cross = self.layers[-1](self._norm(x, self.norms[-1]))
        return np.stack([self._by_head(part) for part in np.split(cross, 6, axis=-1)])

"""The two graphs of a T5 encoder-decoder, built from its weights (not traced) with fused operators.

    encoder  input_ids[b,s], attention_mask[b,s]
             -> cross.<layer>.key|value [b,heads,s,d_kv]: the decoder's cross-attention keys and values
    decoder  input_ids[b,q], encoder_attention_mask[b,s], past.<layer>.key|value [b,heads,p,d_kv], cross.…
             -> logits[b,q,vocab], next[b,q] (their argmax), present.<layer>.key|value [b,heads,p+q,d_kv]

One decoder serves the first step (p = 0), every later one (q = 1) and the scoring of a whole text (q > 1), so no weight
is stored twice and no branch is taken at run time (a merged decoder's `If` costs latency: huggingface/optimum#530).
The cross keys and values are computed once, by the encoder (microsoft/onnxruntime PR#23949).
Names of weights are those of transformers' T5ForConditionalGeneration.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from export.checkpoint import Checkpoint
from export.errors import LoraFtError, UsageError
from export.graph import FLOAT, INT64, MS, Graph

_MASKED = -1e9  # added to the score of a position that must not be seen
_KEY_VALUE = ("key", "value")
_ACTIVATIONS = ("relu", "gated-gelu")
_SIZES = ("num_layers", "num_heads", "d_kv", "d_ff", "d_model", "vocab_size")


class T5:
    """Builds the graphs of one checkpoint.

    Raises:
        UsageError: the checkpoint is not a T5, or has a feed-forward layer that is not relu or gated-gelu.
        LoraFtError: the head is missing.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        if config.get("model_type") != "t5":
            raise UsageError(
                f"{checkpoint.folder} holds a model of type '{config.get('model_type')}'",
                "only t5 (FLAN-T5) is supported",
            )
        self.weights = checkpoint
        self.activation: str = config.get("feed_forward_proj", "relu")
        if self.activation not in _ACTIVATIONS:
            raise UsageError(
                f"{checkpoint.folder}: feed_forward_proj '{self.activation}' is not supported",
                f"supported: {', '.join(_ACTIVATIONS)}",
            )
        missing = [key for key in _SIZES if not isinstance(config.get(key), int)]
        if missing:
            raise UsageError(f"{checkpoint.folder / 'config.json'} does not say {', '.join(missing)}")
        self.layers: int = config["num_layers"]
        self.decoder_layers: int = config.get("num_decoder_layers") or self.layers
        self.heads: int = config["num_heads"]
        self.d_kv: int = config["d_kv"]
        self.d_ff: int = config["d_ff"]
        self.d_model: int = config["d_model"]
        self.vocabulary: int = config["vocab_size"]
        self.epsilon: float = config.get("layer_norm_epsilon", 1e-6)
        self.buckets: int = config.get("relative_attention_num_buckets", 32)
        self.max_distance: int = config.get("relative_attention_max_distance", 128)
        # transformers 5 writes `scale_decoder_outputs`; before, `tie_word_embeddings` meant the same (and more).
        scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
        self.output_scale = self.d_model**-0.5 if scaled else 1.0
        if config.get("tie_word_embeddings", True) is False and "lm_head.weight" not in checkpoint:
            raise LoraFtError(
                f"{checkpoint.folder} lacks lm_head.weight, and its config says that the head is not tied",
                "is a file of the checkpoint missing?",
            )

    def encoder(self) -> onnx.ModelProto:
        """The encoder with the decoder's cross-attention projections at its end."""
        g = Graph("t5_encoder")
        ids, attended = g.input("input_ids", INT64, "b", "s"), g.input("attention_mask", INT64, "b", "s")
        length = self._size(g, ids, 1)
        position = g.op("Range", g.scalar(0), length, g.scalar(1))
        bias = self._bias(g, "encoder", position, position)
        mask = g.op("Cast", attended, to=onnx.TensorProto.INT32)
        residual = self._embed(g, ids)
        h = self._norm(g, residual, "encoder.block.0.layer.0.layer_norm")
        for i in range(self.layers):
            block = f"encoder.block.{i}.layer"
            query, key, value = self._project_qkv(g, h, f"{block}.0.SelfAttention")
            mixed = self._attend(g, query, key, value, mask, bias)
            change = self._linear(g, mixed, f"{block}.0.SelfAttention.o")
            h, residual = self._add_norm(g, residual, change, f"{block}.1.layer_norm")
            change = self._feed_forward(g, h, f"{block}.1.DenseReluDense")
            last = i + 1 == self.layers
            norm = "encoder.final_layer_norm" if last else f"encoder.block.{i + 1}.layer.0.layer_norm"
            h, residual = self._add_norm(g, residual, change, norm)
        for i in range(self.decoder_layers):
            for kind in _KEY_VALUE:
                flat = self._linear(g, h, f"decoder.block.{i}.layer.1.EncDecAttention.{kind[0]}")
                split = g.op("Reshape", flat, g.ints(0, 0, self.heads, self.d_kv))
                name = g.output(f"cross.{i}.{kind}", FLOAT, "b", self.heads, "s", self.d_kv)
                g.op("Transpose", split, output=name, perm=[0, 2, 1, 3])
        return g.model()

    def decoder(self) -> onnx.ModelProto:
        """The decoder with its cache of keys and values as inputs and outputs."""
        g = Graph("t5_decoder")
        ids, attended = g.input("input_ids", INT64, "b", "q"), g.input("encoder_attention_mask", INT64, "b", "s")
        for i in range(self.decoder_layers):
            for kind in _KEY_VALUE:
                g.input(f"past.{i}.{kind}", FLOAT, "b", self.heads, "p", self.d_kv)
                g.input(f"cross.{i}.{kind}", FLOAT, "b", self.heads, "s", self.d_kv)
        past = self._size(g, "past.0.key", 2)
        total = g.op("Add", past, self._size(g, ids, 1))
        query_position = g.op("Range", past, total, g.scalar(1))
        key_position = g.op("Range", g.scalar(0), total, g.scalar(1))
        bias = self._bias(g, "decoder", query_position, key_position)
        mask = g.op("Cast", attended, to=onnx.TensorProto.INT32)
        residual = self._embed(g, ids)
        h = self._norm(g, residual, "decoder.block.0.layer.0.layer_norm")
        for i in range(self.decoder_layers):
            block = f"decoder.block.{i}.layer"
            query, key, value = self._project_qkv(g, h, f"{block}.0.SelfAttention")
            mixed = self._attend_cached(g, query, key, value, bias, i)
            change = self._linear(g, mixed, f"{block}.0.SelfAttention.o")
            h, residual = self._add_norm(g, residual, change, f"{block}.1.layer_norm")
            query = self._linear(g, h, f"{block}.1.EncDecAttention.q")
            mixed = self._attend(g, query, f"cross.{i}.key", f"cross.{i}.value", mask)
            change = self._linear(g, mixed, f"{block}.1.EncDecAttention.o")
            h, residual = self._add_norm(g, residual, change, f"{block}.2.layer_norm")
            change = self._feed_forward(g, h, f"{block}.2.DenseReluDense")
            last = i + 1 == self.decoder_layers
            norm = "decoder.final_layer_norm" if last else f"decoder.block.{i + 1}.layer.0.layer_norm"
            h, residual = self._add_norm(g, residual, change, norm)
        self._head(g, h)
        return g.model()

    def _embed(self, g: Graph, ids: str) -> str:
        return g.op("Gather", g.constant(self.weights["shared.weight"], "shared"), ids)

    def _head(self, g: Graph, h: str) -> None:
        tied = "lm_head.weight" not in self.weights
        table = self.weights["shared.weight" if tied else "lm_head.weight"] * np.float32(self.output_scale)
        logits = g.output("logits", FLOAT, "b", "q", self.vocabulary)
        g.op("MatMul", h, g.constant(table.T, "lm_head"), output=logits)
        g.op("ArgMax", logits, output=g.output("next", INT64, "b", "q"), axis=-1, keepdims=0)

    def _linear(self, g: Graph, x: str, *layers: str) -> str:
        """x @ W.T of a linear layer, or of several that share their input, side by side."""
        joined = np.concatenate([self.weights[f"{name}.weight"] for name in layers])
        return g.op("MatMul", x, g.constant(joined.T, "+".join(layers)))

    def _project_qkv(self, g: Graph, h: str, attention: str) -> tuple[str, ...]:
        joined = self._linear(g, h, *(f"{attention}.{name}" for name in "qkv"))
        width = self.heads * self.d_kv
        return g.ops("Split", joined, g.ints(width, width, width), outputs=[None] * 3, axis=-1)

    def _feed_forward(self, g: Graph, h: str, layer: str) -> str:
        if self.activation == "gated-gelu":
            joined = self._linear(g, h, f"{layer}.wi_0", f"{layer}.wi_1")
            gate, up = g.ops("Split", joined, g.ints(self.d_ff, self.d_ff), outputs=[None] * 2, axis=-1)
            inner = g.op("Mul", g.op("FastGelu", gate, domain=MS), up)  # FastGelu is the tanh form, "gelu_new"
        else:
            inner = g.op("Relu", self._linear(g, h, f"{layer}.wi"))
        return self._linear(g, inner, f"{layer}.wo")

    def _norm(self, g: Graph, x: str, layer: str) -> str:
        weight = g.constant(self.weights[f"{layer}.weight"], layer)
        return g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=self.epsilon, stash_type=1)

    def _add_norm(self, g: Graph, residual: str, change: str, layer: str) -> tuple[str, str]:
        """The norm of residual + change, and that sum."""
        weight = g.constant(self.weights[f"{layer}.weight"], layer)
        outputs = g.ops(
            "SkipSimplifiedLayerNormalization", residual, change, weight,
            outputs=[None, "", "", None], domain=MS, epsilon=self.epsilon,
        )  # fmt: skip
        return outputs[0], outputs[3]

    def _attend(self, g: Graph, query: str, key: str, value: str, mask: str, bias: str = "") -> str:
        return g.op(
            "MultiHeadAttention", query, key, value, "", mask, bias, domain=MS,
            num_heads=self.heads, scale=1.0, mask_filter_value=_MASKED,
        )  # fmt: skip

    def _attend_cached(self, g: Graph, query: str, key: str, value: str, bias: str, layer: int) -> str:
        past = [f"past.{layer}.{kind}" for kind in _KEY_VALUE]
        present = [g.output(f"present.{layer}.{kind}", FLOAT, "b", self.heads, "t", self.d_kv) for kind in _KEY_VALUE]
        return g.ops(
            "MultiHeadAttention", query, key, value, "", "", bias, *past, outputs=[None, *present], domain=MS,
            num_heads=self.heads, scale=1.0, mask_filter_value=_MASKED,
        )[0]  # fmt: skip

    def _bias(self, g: Graph, stack: str, query: str, key: str) -> str:
        """Relative position bias [1,heads,q,k] for the positions query[q] and key[k]; the decoder sees no later key.

        A table holds a row per distance, clipped where T5's last bucket begins, so a graph only looks rows up.
        """
        causal, far = stack == "decoder", self.max_distance
        weight = self.weights[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        rows = weight[_bucket(np.arange(-far, far + 1), self.buckets, far, bidirectional=not causal)]
        offset = g.op("Sub", g.op("Unsqueeze", key, g.ints(0)), g.op("Unsqueeze", query, g.ints(1)))
        index = g.op("Add", g.op("Clip", offset, g.scalar(-far), g.scalar(far)), g.scalar(far))
        if causal:
            rows = np.concatenate([rows, np.full((1, self.heads), _MASKED, np.float32)])
            index = g.op("Where", g.op("Greater", offset, g.scalar(0)), g.scalar(2 * far + 1), index)
        looked_up = g.op("Gather", g.constant(rows, f"{stack}.bias"), index)
        return g.op("Unsqueeze", g.op("Transpose", looked_up, perm=[2, 0, 1]), g.ints(0))

    @staticmethod
    def _size(g: Graph, x: str, axis: int) -> str:
        return g.op("Squeeze", g.op("Shape", x, start=axis, end=axis + 1), g.ints(0))


def _bucket(offset: np.ndarray, buckets: int, max_distance: int, *, bidirectional: bool) -> np.ndarray:
    """T5's bucket of each key-minus-query offset: exact for half of them, then logarithmic (arXiv 1910.10683, 2.1)."""
    base: np.ndarray | int = 0
    if bidirectional:
        buckets //= 2
        base, distance = (offset > 0) * buckets, np.abs(offset)
    else:
        distance = -np.minimum(offset, 0)
    exact = buckets // 2
    # float32 as in transformers: at a bucket's edge the rounding decides
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / math.log(max_distance / exact)
    far = exact + (ratio * (buckets - exact)).astype(np.int64)
    return base + np.where(distance < exact, distance, np.minimum(far, buckets - 1))

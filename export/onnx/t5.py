"""The parts of a T5 encoder-decoder as ONNX nodes, built from its weights with fused operators.

A traced model repeats PyTorch's operators. Built from the weights, a layer needs only a few of ONNX Runtime's fused
operators:

- Attention is one node: MultiHeadAttention with T5's bias and a scale of 1. For single tokens after the first call it
  is GroupQueryAttention, which also writes keys and values into the cache.
- A residual sum and the norm after it are one node (SkipSimplifiedLayerNormalization), which also returns the sum.
- In the decoder, layers that share an input are computed as one product, side by side.
- The relative position bias is a table with a row for each distance, from which a graph gathers (`position_bias`).

`graphs` assembles these parts; `lora_ft.export.families.t5` has the names of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.families import t5 as names
from lora_ft.export.onnx.draft import Draft
from lora_ft.export.onnx.graph import INT32, MS, Graph
from lora_ft.export.onnx.model_parts import InPlace, KeyValue, Weights
from lora_ft.export.onnx.position_bias import MASKED, bias_rows, index_rows
from lora_ft.export.onnx.quantization import Weight, WeightFormat, portable, unrounded


class T5:
    """The parts of a T5 model (see `ModelParts`).

    Args:
        architecture: Architecture of the model.
        weights: Weights of the model.
        storage: Returns the weight format of a layer, by its name.
    """

    def __init__(
        self, architecture: Architecture, weights: Weights, storage: Callable[[str], WeightFormat] = unrounded
    ) -> None:
        self.architecture = architecture
        self._weights = weights
        self._storage = storage

    def portable(self) -> T5:
        """Return the model in formats with equal results on every processor, regardless of session options."""
        return T5(self.architecture, self._weights, lambda layer: portable(self._storage(layer)))

    def encode(self, g: Graph, ids: str, mask: str) -> str:
        """Return the encoder's last hidden state [b,s,d_model] for ids [b,s] and mask [b,s], both int64."""
        a = self.architecture
        position = _range(g, g.size(ids, 1))
        index = index_rows(g, position, position, a.max_distance, causal=False)
        attended = g.op("Cast", mask, to=INT32)
        residual = self._embed(g, ids)
        h = self._norm(g, residual, names.norm_before(names.self_attention("encoder", 0)))
        for i in range(a.layers):
            attention, forward = names.self_attention("encoder", i), names.feed_forward("encoder", i)
            query, key, value = (self._linear(g, h, layer) for layer in names.projections(attention))
            mixed = self._attend(g, query, KeyValue(key, value), attended, self._bias(g, "encoder", i, index))
            change = self._linear(g, mixed, f"{attention}.o")
            h, residual = self._add_norm(g, residual, change, names.norm_before(forward))
            change = self._feed_forward(g, h, forward, joined=False)
            h, residual = self._add_norm(g, residual, change, self._norm_after("encoder", i))
        return h

    def cross(self, g: Graph, hidden: str, outputs: Sequence[KeyValue]) -> None:
        """Append the cross-attention keys and values of the encoder's last hidden state, as `outputs`."""
        a = self.architecture
        names_out = [name for layer in outputs for name in (layer.key, layer.value)]
        for layer, name in zip(names.cross_projections(a), names_out, strict=True):
            g.op("Transpose", self._by_head(g, self._linear(g, hidden, layer)), output=name, perm=[0, 2, 1, 3])

    def decode(
        self,
        g: Graph,
        ids: str,
        mask: str,
        past: Sequence[KeyValue],
        cross: Sequence[KeyValue],
        presents: Sequence[KeyValue],
        in_place: InPlace | None = None,
    ) -> str:
        """Return the decoder's last hidden state [b,q,d_model]; see `ModelParts.decode`."""
        a = self.architecture
        lengths, grouped = in_place.lengths if in_place else "", in_place is not None
        calls = in_place.calls if in_place and a.d_kv % 8 == 0 else "any"
        begin, tokens = lengths or g.op("Unsqueeze", g.size(past[0].key, 2), g.ints(0)), ids
        draft = Draft(g, ids, begin) if calls == "draft" else None
        if draft:
            ids, begin = draft.ids, draft.lengths
        position = g.op("Add", g.op("Unsqueeze", begin, g.ints(1)), _range(g, g.size(ids, 1)))
        if lengths and calls == "any":
            total, length = "", g.size(past[0].key, 2)
        else:
            length = total = g.op("Add", g.op("ReduceMax", begin, keepdims=0), g.size(ids, 1))
        index = index_rows(g, position, _range(g, length), a.max_distance, causal=True)
        attend: Callable[[str, str, KeyValue, KeyValue], str] = partial(self._attend_appended, g)
        if draft:
            attend = partial(self._attend_drafted, g, draft)
        elif calls == "step":
            ends = self._last_positions(g, ids, begin), g.op("Cast", total, to=INT32)
            attend = partial(self._attend_next, g, ends)
        elif lengths:
            attend = partial(self._attend_placed, g, self._places(g, ids, position))
        attended = g.op("Cast", mask, to=INT32)
        # rows that share a source become more tokens of it [sources,k*q], so its keys and adapter are read only once
        by_source = partial(_regroup, g, mask, 1) if grouped else _unchanged
        by_row = partial(_regroup, g, ids, 2) if grouped else _unchanged
        residual = by_source(self._embed(g, ids), a.d_model)
        h = self._norm(g, residual, names.norm_before(names.self_attention("decoder", 0)))
        for i in range(a.decoder_layers):
            self_attention, cross_attention = names.self_attention("decoder", i), names.cross_attention(i)
            forward = names.feed_forward("decoder", i)
            bias = self._bias(g, "decoder", i, index)
            joined = by_row(self._project(g, h, self_attention), 3 * a.width)
            mixed = by_source(attend(joined, bias, past[i], presents[i]), a.width)
            change = self._linear(g, mixed, f"{self_attention}.o")
            h, residual = self._add_norm(g, residual, change, names.norm_before(cross_attention))
            query = self._linear(g, h, f"{cross_attention}.q")
            if draft:
                mixed = draft.attend_source(query, cross[i], mask, a)
            else:
                mixed = self._attend(g, query, cross[i], attended)
            change = self._linear(g, mixed, f"{cross_attention}.o")
            h, residual = self._add_norm(g, residual, change, names.norm_before(forward))
            change = self._feed_forward(g, h, forward)
            h, residual = self._add_norm(g, residual, change, self._norm_after("decoder", i))
        return _regroup(g, tokens, 2, h, a.d_model) if grouped else h

    def head(self, g: Graph, hidden: str, output: str | None = None, tokens: Sequence[int] = ()) -> str:
        """Return the logits [b,q,vocabulary] of the decoder's last hidden state, or those [b,q,n] of some tokens."""
        a = self.architecture
        untied = f"{names.HEAD}.weight" in self._weights
        name = f"{names.HEAD if untied else names.EMBEDDING}.weight"
        rows = list(tokens) or slice(None)
        weight = Weight(
            (f"{names.HEAD}.labels",) if tokens else (names.HEAD,),
            len(tokens) or a.vocabulary,
            a.d_model,
            lambda: self._weights[name][rows] * np.float32(a.output_scale),
            self._weights.peak(names.HEAD),
            lambda: self._weights.moments(names.HEAD),
        )
        return self._storage(names.HEAD).linear(g, hidden, weight, output)

    def _embed(self, g: Graph, ids: str) -> str:
        a = self.architecture
        name = names.EMBEDDING
        weight = Weight((name,), a.vocabulary, a.d_model, lambda: self._weights[f"{name}.weight"])
        return self._storage(name).rows(g, ids, weight)

    def _norm_after(self, stack: names.Stack, block: int) -> str:
        """Return the name of the norm after a block."""
        a = self.architecture
        last = block + 1 == (a.layers if stack == "encoder" else a.decoder_layers)
        return names.final_norm(stack) if last else names.norm_before(names.self_attention(stack, block + 1))

    def _linear(self, g: Graph, x: str, *layers: str) -> str:
        """Return x @ W.T of a linear layer, or of several layers with the same input, side by side."""
        tensors = [f"{layer}.weight" for layer in layers]
        shapes = [self._weights.shape(name) for name in tensors]
        weight = Weight(
            layers,
            sum(shape[0] for shape in shapes),
            shapes[0][1],
            lambda: np.concatenate([self._weights[name] for name in tensors]),
            max(self._weights.peak(layer) for layer in layers),
            lambda: self._weights.moments(layers[0]),  # equal for all layers, since they share their input
        )
        return self._storage(layers[0]).linear(g, x, weight)

    def _project(self, g: Graph, h: str, attention: str) -> str:
        return self._linear(g, h, *names.projections(attention))

    def _split(self, g: Graph, joined: str) -> tuple[str, ...]:
        """Return queries, keys and values."""
        return g.ops("Split", joined, g.ints(*[self.architecture.width] * 3), outputs=[None] * 3, axis=-1)

    def _feed_forward(self, g: Graph, h: str, layer: str, *, joined: bool = True) -> str:
        a = self.architecture
        if not a.gated:
            return self._linear(g, _activate(g, self._linear(g, h, f"{layer}.wi"), a.activation), f"{layer}.wo")
        if joined:
            both = self._linear(g, h, f"{layer}.wi_0", f"{layer}.wi_1")
            gate, up = g.ops("Split", both, g.ints(a.d_ff, a.d_ff), outputs=[None] * 2, axis=-1)
        else:
            gate, up = (self._linear(g, h, f"{layer}.{name}") for name in ("wi_0", "wi_1"))
        return self._linear(g, g.op("Mul", _activate(g, gate, a.activation), up), f"{layer}.wo")

    def _norm(self, g: Graph, x: str, layer: str) -> str:
        """Return the norm of x in standard operators, which ONNX Runtime fuses to SimplifiedLayerNormalization.

        The fused operator has no domain of its own, so `onnx.checker` refuses graphs that contain it.
        """
        weight = g.weight(layer, lambda: self._weights[f"{layer}.weight"])
        square = g.op("Pow", x, g.constant(np.float32(2), "float.2"))
        epsilon = g.constant(np.float32(self.architecture.epsilon), "epsilon")
        root = g.op("Sqrt", g.op("Add", g.op("ReduceMean", square, g.ints(-1), keepdims=1), epsilon))
        return g.op("Mul", g.op("Div", x, root), weight)

    def _add_norm(self, g: Graph, residual: str, change: str, layer: str) -> tuple[str, str]:
        """Return (norm of residual + change, residual + change)."""
        weight = g.weight(layer, lambda: self._weights[f"{layer}.weight"])
        outputs = g.ops(
            "SkipSimplifiedLayerNormalization",
            residual,
            change,
            weight,
            outputs=[None, "", "", None],
            domain=MS,
            epsilon=self.architecture.epsilon,
        )
        return outputs[0], outputs[3]

    def _attend(self, g: Graph, query: str, source: KeyValue, mask: str, bias: str = "") -> str:
        return g.op(
            "MultiHeadAttention",
            query,
            source.key,
            source.value,
            "",
            mask,
            bias,
            domain=MS,
            num_heads=self.architecture.heads,
            scale=1.0,
            mask_filter_value=MASKED,
        )

    def _attend_appended(self, g: Graph, joined: str, bias: str, past: KeyValue, present: KeyValue) -> str:
        return g.ops(
            "MultiHeadAttention",
            *self._split(g, joined),
            "",
            "",
            bias,
            past.key,
            past.value,
            outputs=[None, present.key, present.value],
            domain=MS,
            num_heads=self.architecture.heads,
            scale=1.0,
            mask_filter_value=MASKED,
        )[0]

    def _attend_next(
        self, g: Graph, ends: tuple[str, str], joined: str, bias: str, past: KeyValue, present: KeyValue | None
    ) -> str:
        heads = self.architecture.heads
        outputs = (present.key, present.value) if present else (None, None)
        return g.ops(
            "GroupQueryAttention",
            joined,
            "",
            "",
            past.key,
            past.value,
            *ends,
            "",
            "",
            "",
            bias,
            outputs=[None, *outputs],
            domain=MS,
            num_heads=heads,
            kv_num_heads=heads,
            scale=1.0,
        )[0]

    def _attend_placed(self, g: Graph, places: str, joined: str, bias: str, past: KeyValue, present: KeyValue) -> str:
        return self._attend(g, self._place(g, places, joined, past, present), present, "", bias)

    def _attend_drafted(self, g: Graph, draft: Draft, joined: str, bias: str, past: KeyValue, present: KeyValue) -> str:
        """Write the keys and values of all tokens, then let each token attend as the next one of its row."""
        places = g.once("places", lambda: self._places(g, draft.tokens, draft.position))
        self._place(g, places, _regroup(g, draft.tokens, 2, joined, 3 * self.architecture.width), past, present)
        rows = KeyValue(draft.repeat(present.key), draft.repeat(present.value))
        return self._attend_next(g, draft.ends, joined, bias, rows, None)

    def _place(self, g: Graph, places: str, joined: str, past: KeyValue, present: KeyValue) -> str:
        """Write new keys and values into the cache, and return the queries."""
        query, key, value = self._split(g, joined)
        for new, old, whole in ((key, past.key, present.key), (value, past.value, present.value)):
            g.op("ScatterND", old, places, g.op("Transpose", self._by_head(g, new), perm=[0, 2, 1, 3]), output=whole)
        return query

    def _by_head(self, g: Graph, x: str) -> str:
        return g.op("Reshape", x, g.ints(0, 0, self.architecture.heads, self.architecture.d_kv))

    def _bias(self, g: Graph, stack: names.Stack, layer: int, index: str) -> str:
        """Return the relative position bias [rows,heads,q,k] of a layer, for the result of `index_rows`."""
        a = self.architecture
        name = names.position_bias(stack, layer if a.bias_per_layer else 0)
        table = g.weight(
            name,
            lambda: bias_rows(self._weights[f"{name}.weight"], a.buckets, a.max_distance, causal=stack == "decoder"),
        )
        return g.once(f"{name}@{index}", lambda: g.op("Transpose", g.op("Gather", table, index), perm=[0, 3, 1, 2]))

    @staticmethod
    def _last_positions(g: Graph, ids: str, lengths: str) -> str:
        """Return the position of the last new token of each row [b], int32."""
        last = g.op("Sub", g.op("Add", lengths, g.size(ids, 1)), g.scalar(1))
        return g.op("Expand", g.op("Cast", last, to=INT32), g.op("Shape", ids, start=0, end=1))

    def _places(self, g: Graph, ids: str, position: str) -> str:
        """Return (row, head, position) of every new key [b,heads,q,3]."""
        row = g.op("Reshape", _range(g, g.size(ids, 0)), g.ints(-1, 1, 1, 1))
        head = g.constant(np.arange(self.architecture.heads).reshape(1, -1, 1, 1))
        shape = g.op(
            "Concat",
            g.op("Shape", ids, start=0, end=1),
            g.ints(self.architecture.heads),
            g.op("Shape", ids, start=1, end=2),
            g.ints(1),
            axis=0,
        )
        coordinates = row, head, g.op("Unsqueeze", position, g.ints(1, 3))
        return g.op("Concat", *(g.op("Expand", each, shape) for each in coordinates), axis=-1)


def _regroup(g: Graph, like: str, axes: int, x: str, width: int) -> str:
    """Return x as [first axes of `like`, remaining elements, width]."""
    trailing = g.ints(width) if axes == 2 else g.ints(-1, width)
    shape = g.once(f"{like}x{width}", lambda: g.op("Concat", g.op("Shape", like, end=axes), trailing, axis=0))
    return g.op("Reshape", x, shape)


def _unchanged(x: str, width: int) -> str:
    return x


def _range(g: Graph, end: str) -> str:
    """Return 0 to `end` - 1 as [1,end], for a 0-D int64 `end`."""
    return g.op("Unsqueeze", g.op("Range", g.scalar(0), end, g.scalar(1)), g.ints(0))


def _activate(g: Graph, x: str, activation: str) -> str:
    if activation == "relu":
        return g.op("Relu", x)
    if activation == "gelu_new":
        return g.op("FastGelu", x, domain=MS)  # the tanh form
    return g.op("QuickGelu", x, domain=MS, alpha=1.0)  # x * sigmoid(x), "silu"

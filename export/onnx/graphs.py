"""The graphs of a bundle, assembled from the parts of a model.

Generation is a loop outside the graphs, and each token costs one call of a small graph. The work is therefore divided
by how often it is needed, so that the graph in the loop only computes a step:

    encoder        input_ids[b,s], attention_mask[b,s] -> cross.<layer>.key|value [b,heads,s,d_kv], once per source
    decoder        next tokens of every row, each row at its own position; writes keys and values into the cache
    step           the same, but faster: one token per row, any number of tokens of one row, or the first call
    labels         `step` with the logits of the tokens of the task's labels alone, if it has labels
    draft          several tokens per row, with the bits of single steps, to check drafts (`draft`)
    device_step    `decoder` for one token per row, whose outputs are its next inputs, for GPUs
    log_softmax    log-softmax of logits, for beam search
    top_k          the likeliest tokens of a step, for beam search and sampling
    reorder_cache  selected rows of a cache, to reorder beams and to remove finished rows

The encoder computes the cross-attention keys and values once (microsoft/onnxruntime PR#23949). The first and later
steps share a graph without branches, since the `If` of a merged decoder costs latency (huggingface/optimum#530). The
cache has spare capacity that a step writes into. A loop inside the graph (`Loop`) would copy the cache in every turn,
which took 7 to 25 % more time with FLAN-T5-small, and more with longer answers and larger batches. Only `single`, for
callers that need a single call, has such a loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from lora_ft.export.onnx.argmax import argmax
from lora_ft.export.onnx.graph import BOOL, FLOAT, INT64, Graph, WeightFile
from lora_ft.export.onnx.model_parts import Calls, InPlace, KeyValue, ModelParts
from lora_ft.export.onnx.sampling import Sampling, choose

WINDOW = 8  # tokens of a row that `device_step` keeps: steps that a GPU may take until the host reads them


def encoder_model(parts: ModelParts, weights: WeightFile | None = None) -> onnx.ModelProto:
    """Return the encoder, followed by the decoder's cross-attention projections."""
    g = Graph("encoder", weights)
    ids, mask = g.input("input_ids", INT64, "b", "s"), g.input("attention_mask", INT64, "b", "s")
    parts.cross(g, parts.encode(g, ids, mask), _outputs(g, parts, "cross", "b", "s"))
    return g.model()


def decoder_model(
    parts: ModelParts, weights: WeightFile | None = None, *, calls: Calls = "any", tokens: Sequence[int] = ()
) -> onnx.ModelProto:
    """Return the decoder, which continues the tokens in a cache with spare capacity.

        input_ids[b,q], lengths[b] (or [1] if all are equal), forbid_eos[] (bool: exclude </s>),
        encoder_attention_mask[sources,s], past.<layer>.key|value [b,heads,room,d_kv], of which the first `lengths` are
        filled, cross.<layer>.key|value [sources,heads,s,d_kv]
        -> logits[b,q,vocabulary], next[b,q] (likeliest tokens), present.<layer>.key|value [b,heads,room,d_kv]

    If `present` is bound to the memory of `past`, nothing is copied. Positions beyond a row's length are ignored, so a
    smaller length removes tokens. Rows b = sources * k share a source, k consecutive rows each.

    Args:
        parts: Parts of the model.
        weights: File for the weights. None keeps them in the graph.
        calls: Calls that the graph is for; see `InPlace`.
        tokens: Tokens whose logits [b,q,n] are returned, without `next`, so that the graph reads only their rows of the
            head. Default: all. `forbid_eos` then has no effect.
    """
    g = Graph("labels" if tokens else "decoder" if calls == "any" else calls, weights)
    ids, lengths = g.input("input_ids", INT64, "b", "q"), g.input("lengths", INT64, "n")
    forbid_eos = g.input("forbid_eos", BOOL)
    mask = g.input("encoder_attention_mask", INT64, "sources", "s")
    past, cross = _inputs(g, parts, "past", "b", "room"), _inputs(g, parts, "cross", "sources", "s")
    logits = g.output("logits", FLOAT, "b", "q", len(tokens) or parts.architecture.vocabulary)
    presents = _outputs(g, parts, "present", "b", "room")
    hidden = parts.decode(g, ids, mask, past, cross, presents, InPlace(lengths, calls))
    parts.head(g, hidden, logits, tokens)
    if tokens:
        return g.model()
    best = g.output("next", INT64, "b", "q")
    argmax(g, logits, parts.architecture.vocabulary, output=best, barred=(parts.architecture.special.ends, forbid_eos))
    return g.model()


def device_step_model(parts: ModelParts, weights: WeightFile | None = None) -> onnx.ModelProto:
    """Return a greedy step whose outputs are its next inputs, so that a GPU takes many steps without the host.

        state[b,1+WINDOW], least[1], encoder_attention_mask[b,s],
        past.<layer>.key|value [b,heads,room,d_kv], cross.<layer>.key|value [b,heads,s,d_kv]
        -> next_state[b,1+WINDOW], present.<layer>.key|value [b,heads,room,d_kv]

    A row of the state is the number of tokens in its cache, then its latest tokens, oldest first; the last one is read.
    Rows with fewer than `least` tokens do not end. `next_state` may be bound to the memory of `state`, and `present` to
    that of `past`: whatever reads them comes before the node that writes them.

    CUDA graphs can capture it: it has no control flow, and no value of the host depends on one of the device.
    """
    g = Graph("device_step", weights)
    state, least = g.input("state", INT64, "b", 1 + WINDOW), g.input("least", INT64, 1)
    mask = g.input("encoder_attention_mask", INT64, "b", "s")
    past, cross = _inputs(g, parts, "past", "b", "room"), _inputs(g, parts, "cross", "b", "s")
    presents = _outputs(g, parts, "present", "b", "room")
    length, token = (g.op("Gather", state, g.ints(place), axis=1) for place in (0, WINDOW))
    hidden = parts.decode(g, token, mask, past, cross, presents, InPlace(g.op("Squeeze", length, g.ints(1))))
    is_short = g.op("Unsqueeze", g.op("Less", length, least), g.ints(2))
    a = parts.architecture
    chosen = argmax(g, parts.head(g, hidden), a.vocabulary, barred=(a.special.ends, is_short))
    columns = np.arange(1 + WINDOW)
    shifted = g.op("Gather", state, g.constant(np.minimum(columns + (columns > 0), WINDOW)), axis=1)
    counted = g.op("Add", shifted, g.constant((columns[None] == 0).astype(np.int64)))
    # Where, since the sizes of a Concat would be copied from the host within the captured graph
    g.op(
        "Where",
        g.constant(columns[None] == WINDOW),
        chosen,
        counted,
        output=g.output("next_state", INT64, "b", 1 + WINDOW),
    )
    return g.model()


def single_model(parts: ModelParts, *, by_row: bool = False) -> onnx.ModelProto:
    """Return encoder and loop in one graph, for callers without this project's runtime.

    input_ids[b,s], attention_mask[b,s], min_new_tokens[], max_new_tokens[], and the inputs of `sampling.Sampling`
    -> sequences[b,n], padded after </s>

    Args:
        parts: Parts of the model.
        by_row: Make every option a column [b,1], because a server batches requests of several callers. Each row ends
            at its own limit. A sampling row with too few random numbers becomes -1 throughout. Without `by_row` the
            call fails.
    """
    g = Graph("generate")
    ids, mask = g.input("input_ids", INT64, "b", "s"), g.input("attention_mask", INT64, "b", "s")
    names = ("min_new_tokens", "max_new_tokens")
    if by_row:
        least, most = (g.input(name, INT64, "b", 1) for name in names)
        lacks, sampling = Sampling.inputs_by_row(g).lacking(g, most)
        most = g.op("Where", lacks, g.scalar(1), most)  # the marked row needs one token
    else:
        limits = [g.input(name, INT64) for name in names]
        sampling = Sampling.inputs(g).checked(g, g.size(ids, 0), limits[1])
        least, most = (g.op("Reshape", limit, g.ints(1, 1)) for limit in limits)
    a = parts.architecture
    cross = [KeyValue(f"cross.{i}.key", f"cross.{i}.value") for i in range(a.decoder_layers)]
    parts.cross(g, parts.encode(g, ids, mask), cross)
    batch = g.op("Shape", ids, start=0, end=1)
    first = g.op(
        "Expand", g.constant(np.array([[a.special.start]], np.int64)), g.op("Concat", batch, g.ints(1), axis=0)
    )
    sequences = g.output("sequences", INT64, "b", "n")
    tokens = _loop(g, parts, first, mask, cross, (least, most), sampling)
    g.op("Where", lacks, g.scalar(-1), tokens, output=sequences) if by_row else g.op(
        "Identity", tokens, output=sequences
    )
    return g.model()


def reorder_cache_model(parts: ModelParts) -> onnx.ModelProto:
    """Return the graph rows[n], <layer>.key|value [b,heads,t,d_kv] -> selected.<layer>.key|value [n,heads,t,d_kv]."""
    g = Graph("reorder_cache")
    rows = g.input("rows", INT64, "n")
    sources = _inputs(g, parts, "", "b", "t")
    for source, target in zip(sources, _outputs(g, parts, "selected", "n", "t"), strict=True):
        g.op("Gather", source.key, rows, output=target.key, axis=0)
        g.op("Gather", source.value, rows, output=target.value, axis=0)
    return g.model()


def log_softmax_model(parts: ModelParts) -> onnx.ModelProto:
    """Return the graph logits[b,q,vocabulary] -> log_probs[b,q,vocabulary]."""
    g = Graph("log_softmax")
    logits = g.input("logits", FLOAT, "b", "q", parts.architecture.vocabulary)
    g.op("LogSoftmax", logits, output=g.output("log_probs", FLOAT, "b", "q", parts.architecture.vocabulary), axis=-1)
    return g.model()


def top_k_model(parts: ModelParts) -> onnx.ModelProto:
    """Return the graph scores[b,q,vocabulary], count[1] -> highest[b,q,count] (descending), tokens[b,q,count]."""
    g = Graph("top_k")
    scores = g.input("scores", FLOAT, "b", "q", parts.architecture.vocabulary)
    count = g.op("Min", g.input("count", INT64, 1), g.ints(parts.architecture.vocabulary))
    outputs = [g.output("highest", FLOAT, "b", "q", "k"), g.output("tokens", INT64, "b", "q", "k")]
    g.ops("TopK", scores, count, outputs=outputs, axis=-1)
    return g.model()


def _loop(
    g: Graph,
    parts: ModelParts,
    first: str,
    mask: str,
    cross: Sequence[KeyValue],
    limits: tuple[str, str],
    sampling: Sampling,
) -> str:
    """Append the loop and return its tokens [b,n]. A turn adds a token to every row, until all rows have ended.

    Args:
        g: Graph to append to.
        parts: Parts of the model.
        first: Start tokens [b,1].
        mask, cross: See `ModelParts.decode`.
        limits: Names of the minimum and maximum number of new tokens, int64 [b,1], or [1,1] for all rows.
        sampling: Names of the sampling options.
    """
    a = parts.architecture
    least, most = limits
    no_past = g.op("Concat", g.op("Shape", first, start=0, end=1), g.ints(a.heads, 0, a.d_kv), axis=0)
    empty = g.op("Expand", g.constant(np.zeros((1, 1, 1, 1), np.float32)), no_past)
    past = [KeyValue(empty, empty)] * a.decoder_layers
    already_ended = g.op("Expand", g.op("LessOrEqual", most, g.scalar(0)), g.op("Shape", first))
    for special in (*a.special.ends, a.special.pad):
        g.scalar(special)  # the loop's body uses these constants of the outer graph
    body = g.body("step")
    turn, _ = body.input("turn", INT64), body.input("go", BOOL)
    token, has_ended = body.input("token", INT64, "b", 1), body.input("done", BOOL, "b", 1)
    inner_past = _inputs(body, parts, "step.past", "b", "p")
    inner_presents = [KeyValue(f"step.present.{i}.key", f"step.present.{i}.value") for i in range(a.decoder_layers)]
    hidden = parts.decode(body, token, mask, inner_past, cross, inner_presents)
    logits = parts.head(body, hidden)
    forbid_eos = body.op("Unsqueeze", body.op("Less", turn, least), body.ints(2))
    next_token = choose(body, logits, a.vocabulary, (a.special.ends, forbid_eos), sampling, turn)
    emitted = body.op("Where", has_ended, body.scalar(a.special.pad), next_token)
    ended = body.op("Or", has_ended, body.op("LessOrEqual", most, body.op("Add", turn, body.scalar(1))))
    for end in a.special.ends:
        ended = body.op("Or", ended, body.op("Equal", next_token, body.scalar(end)))
    all_ended = body.op("ReduceMin", body.op("Cast", ended, to=onnx.TensorProto.INT32), keepdims=0)
    body.output(body.op("Not", body.op("Cast", all_ended, to=BOOL)), BOOL)
    body.output(emitted, INT64, "b", 1)
    body.output(ended, BOOL, "b", 1)
    for present in inner_presents:
        body.output(present.key, FLOAT, "b", a.heads, "t", a.d_kv)
        body.output(present.value, FLOAT, "b", a.heads, "t", a.d_kv)
    body.output(body.op("Identity", emitted), INT64, "b", 1)
    carried = [first, already_ended, *(name for kv in past for name in (kv.key, kv.value))]
    true = g.constant(np.array(True), "true")
    outputs = [None] * (len(carried) + 1)
    *_, steps = g.ops("Loop", g.op("ReduceMax", most, keepdims=0), true, *carried, outputs=outputs, body=body.proto())
    tokens = g.op("Transpose", g.op("Squeeze", steps, g.ints(2)), perm=[1, 0])
    # a loop without turns returns no rows
    return g.op("Reshape", tokens, g.op("Concat", g.op("Shape", first, start=0, end=1), g.ints(-1), axis=0))


def _inputs(g: Graph, parts: ModelParts, prefix: str, batch: str, length: str) -> list[KeyValue]:
    return [
        KeyValue(
            *(g.input(name, FLOAT, batch, parts.architecture.heads, length, parts.architecture.d_kv) for name in names)
        )
        for names in _names(parts, prefix)
    ]


def _outputs(g: Graph, parts: ModelParts, prefix: str, batch: str, length: str) -> list[KeyValue]:
    return [
        KeyValue(
            *(g.output(name, FLOAT, batch, parts.architecture.heads, length, parts.architecture.d_kv) for name in names)
        )
        for names in _names(parts, prefix)
    ]


def _names(parts: ModelParts, prefix: str) -> list[tuple[str, str]]:
    """Return the names of (keys, values), layer by layer."""
    stem = f"{prefix}." if prefix else ""
    return [(f"{stem}{i}.key", f"{stem}{i}.value") for i in range(parts.architecture.decoder_layers)]

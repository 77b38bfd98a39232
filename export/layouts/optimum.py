"""The four graphs that Optimum's ORTModelForSeq2SeqLM and transformers.js load, with the names and axes they expect.

    encoder_model            input_ids, attention_mask -> last_hidden_state
    decoder_model            input_ids, encoder_attention_mask, encoder_hidden_states -> logits, present.*
    decoder_with_past_model  the same with past_key_values.* instead of hidden states, one token per row
    decoder_model_merged     both decoders, switched by use_cache_branch[1]

All four are written because consumers load different graphs. Optimum loads the merged decoder, or with
`use_merged=False` the other two decoders. transformers.js loads the merged decoder. A copy for one consumer may omit
the other graphs.

Optimum reads caches in the graph's order: self-attention key and value, then cross-attention key and value, layer by
layer. Its empty past has the width d_model / heads, which differs from d_kv in FLAN-T5-small, so that axis is free in
the merged decoder. Optimum's `use_io_binding=True` assumes the same width for outputs and fails if d_kv differs, even
with its own exports.

These graphs compute and copy more than a bundle's, since cross-attention keys and values pass through every call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.checkpoint.generation_config import read_generation
from lora_ft.export.onnx.graph import BOOL, FLOAT, INT64, Graph, save
from lora_ft.export.onnx.model_parts import KeyValue, ModelParts
from lora_ft.export.runtime.session import open_session

NAMES = ("encoder_model", "decoder_model", "decoder_with_past_model", "decoder_model_merged")
_MASK, _HIDDEN, _PAST = "encoder_attention_mask", "encoder_hidden_states", "past_key_values"


def write(folder: Path, parts: ModelParts) -> None:
    """Write the four graphs into `folder`/onnx, the folder that transformers.js expects."""
    (folder / "onnx").mkdir()
    for name, build in zip(NAMES, (_encoder, _decoder, _decoder_with_past, _merged), strict=True):
        save(build(parts), folder / "onnx" / f"{name}.onnx")


def answer_split(folder: Path, ids: np.ndarray, mask: np.ndarray, limit: int) -> np.ndarray:
    """Return the tokens that the encoder, the first decoder and the decoder with past generate."""
    encoder, first, later = (open_session(folder / "onnx" / f"{name}.onnx") for name in NAMES[:3])
    names = [output.name for output in first.get_outputs()]

    def step(tokens: np.ndarray, hidden: np.ndarray, past: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session, feed = (later, past) if past else (first, {_HIDDEN: hidden})
        outputs = [name for name in names if not past or ".encoder." not in name]
        values = session.run(outputs, {**feed, "input_ids": tokens, _MASK: mask})
        return dict(zip(outputs, values, strict=True))

    return _generate(encoder, step, ids, mask, limit, _special(folder))


def answer_merged(folder: Path, ids: np.ndarray, mask: np.ndarray, limit: int) -> np.ndarray:
    """Return the tokens that the encoder and the merged decoder generate."""
    encoder, merged = (open_session(folder / "onnx" / f"{name}.onnx") for name in (NAMES[0], NAMES[3]))
    names = [output.name for output in merged.get_outputs()]
    heads = {entry.name: entry.shape[1] for entry in merged.get_inputs() if entry.name.startswith(_PAST)}
    empty = {name: np.zeros((len(ids), count, 0, 1), np.float32) for name, count in heads.items()}

    def step(tokens: np.ndarray, hidden: np.ndarray, past: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        feed = {**(past or empty), "input_ids": tokens, _MASK: mask, _HIDDEN: hidden}
        outputs = dict(zip(names, merged.run(names, feed | {"use_cache_branch": np.array([bool(past)])}), strict=True))
        return {name: value for name, value in outputs.items() if not past or ".encoder." not in name}

    return _generate(encoder, step, ids, mask, limit, _special(folder))


def _special(folder: Path) -> SpecialTokens:
    return read_generation(folder).special


def _generate(
    encoder: ort.InferenceSession,
    step: Callable[..., dict[str, np.ndarray]],
    ids: np.ndarray,
    mask: np.ndarray,
    limit: int,
    special: SpecialTokens,
) -> np.ndarray:
    (hidden,) = encoder.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})
    tokens, columns = np.full((len(ids), 1), special.start), list[np.ndarray]()
    past: dict[str, np.ndarray] = {}
    ended = np.zeros((len(ids), 1), bool)
    while len(columns) < limit and not ended.all():
        out = step(tokens, hidden, past)
        past = past | {name.replace("present", _PAST): value for name, value in out.items() if name != "logits"}
        tokens = np.where(ended, special.pad, out["logits"][:, -1:].argmax(-1))
        ended = ended | special.ended(tokens)
        columns.append(tokens)
    return np.concatenate(columns, axis=1)


def _encoder(parts: ModelParts) -> onnx.ModelProto:
    g = Graph("encoder_model")
    ids, mask = (
        g.input(name, INT64, "batch_size", "encoder_sequence_length") for name in ("input_ids", "attention_mask")
    )
    hidden = parts.encode(g, ids, mask)
    output = g.output("last_hidden_state", FLOAT, "batch_size", "encoder_sequence_length", parts.architecture.d_model)
    g.op("Identity", hidden, output=output)
    return g.model()


def _decoder(parts: ModelParts) -> onnx.ModelProto:
    g = Graph("decoder_model")
    ids, mask, hidden = _inputs(g, parts, "decoder_sequence_length")
    logits = _logits(g, parts)
    self_presents, cross_presents = _presents(g, parts)
    parts.head(g, _first_step(g, parts, ids, mask, hidden, self_presents, cross_presents), logits)
    return g.model()


def _decoder_with_past(parts: ModelParts) -> onnx.ModelProto:
    g = Graph("decoder_with_past_model")
    mask = g.input(_MASK, INT64, "batch_size", "encoder_sequence_length")
    ids = g.input("input_ids", INT64, "batch_size", 1)
    logits = _logits(g, parts)
    past, cross = _pasts(g, parts)
    self_presents, _ = _presents(g, parts, sides=("decoder",))
    parts.head(g, parts.decode(g, ids, mask, past, cross, self_presents), logits)
    return g.model()


def _merged(parts: ModelParts) -> onnx.ModelProto:
    g = Graph("decoder_model_merged")
    ids, mask, hidden = _inputs(g, parts, "decoder_sequence_length")
    past, cross_pasts = _pasts(g, parts, width="past_width")
    switch = g.op("Squeeze", g.input("use_cache_branch", BOOL, 1), g.ints(0))
    logits = _logits(g, parts)
    self_presents, cross_presents = _presents(g, parts)

    first = g.body("first")
    branch_self, branch_cross = _named(parts, "first.decoder"), _named(parts, "first.encoder")
    branch_logits = parts.head(first, _first_step(first, parts, ids, mask, hidden, branch_self, branch_cross))
    _declare(first, parts, branch_logits, branch_self, branch_cross)

    later = g.body("later")
    branch_self, branch_cross = _named(parts, "later.decoder"), _named(parts, "later.encoder")
    branch_logits = parts.head(later, parts.decode(later, ids, mask, past, cross_pasts, branch_self))
    a = parts.architecture
    nothing = later.constant(np.zeros((0, a.heads, 1, a.d_kv), np.float32), "nothing")
    for name in _flat(branch_cross):  # callers keep the values of the first step, so nothing is copied
        later.op("Identity", nothing, output=name)
    _declare(later, parts, branch_logits, branch_self, branch_cross)

    outputs = [logits, *_flat(self_presents), *_flat(cross_presents)]  # in the order of `_declare`
    g.ops("If", switch, outputs=outputs, then_branch=later.proto(), else_branch=first.proto())
    return g.model()


def _declare(
    g: Graph, parts: ModelParts, logits: str, self_presents: Sequence[KeyValue], cross_presents: Sequence[KeyValue]
) -> None:
    """Declare the logits and the keys and values as outputs of a branch."""
    a = parts.architecture
    g.output(logits, FLOAT, "b", "q", a.vocabulary)
    for name in (*_flat(self_presents), *_flat(cross_presents)):
        g.output(name, FLOAT, "b", a.heads, "t", a.d_kv)


def _first_step(
    g: Graph,
    parts: ModelParts,
    ids: str,
    mask: str,
    hidden: str,
    self_presents: Sequence[KeyValue],
    cross_presents: Sequence[KeyValue],
) -> str:
    """Return the decoder's last hidden state for tokens without a past."""
    a = parts.architecture
    parts.cross(g, hidden, cross_presents)
    shape = g.op("Concat", g.op("Shape", ids, start=0, end=1), g.ints(a.heads, 0, a.d_kv), axis=0)
    empty = g.op("Expand", g.constant(np.zeros((1, 1, 1, 1), np.float32), "zero"), shape)
    past = [KeyValue(empty, empty)] * a.decoder_layers
    return parts.decode(g, ids, mask, past, cross_presents, self_presents)


def _inputs(g: Graph, parts: ModelParts, length: str) -> tuple[str, str, str]:
    """Declare the inputs and return (input_ids, encoder_attention_mask, encoder_hidden_states)."""
    mask = g.input(_MASK, INT64, "batch_size", "encoder_sequence_length")
    ids = g.input("input_ids", INT64, "batch_size", length)
    width = parts.architecture.d_model
    return ids, mask, g.input(_HIDDEN, FLOAT, "batch_size", "encoder_sequence_length", width)


def _logits(g: Graph, parts: ModelParts) -> str:
    return g.output("logits", FLOAT, "batch_size", "decoder_sequence_length", parts.architecture.vocabulary)


def _pasts(g: Graph, parts: ModelParts, width: int | str | None = None) -> tuple[list[KeyValue], list[KeyValue]]:
    """Declare the keys and values of earlier steps and return (decoder's, encoder's), each by layer.

    Args:
        g: Graph to declare them in.
        parts: Parts of the model.
        width: Size or name of their last axis. Default: d_kv.
    """
    width = parts.architecture.d_kv if width is None else width
    lengths = {"decoder": "past_decoder_sequence_length", "encoder": "encoder_sequence_length_out"}
    return _declared(g.input, parts, _PAST, lengths, width)


def _presents(
    g: Graph, parts: ModelParts, sides: Sequence[str] = ("decoder", "encoder")
) -> tuple[list[KeyValue], list[KeyValue]]:
    """Declare the keys and values after this step and return (decoder's, encoder's), each by layer."""
    lengths = {"decoder": "past_decoder_sequence_length + 1", "encoder": "encoder_sequence_length_out"}
    return _declared(g.output, parts, "present", {side: lengths[side] for side in sides}, parts.architecture.d_kv)


def _declared(
    declare: Callable[..., str], parts: ModelParts, stem: str, lengths: Mapping[str, str], width: int | str
) -> tuple[list[KeyValue], list[KeyValue]]:
    """Declare four names per layer, in layer order, since Optimum matches them by position and not by name."""
    names: dict[str, list[KeyValue]] = {"decoder": [], "encoder": []}
    for layer in _layers(parts):
        for side, length in lengths.items():
            pair = KeyValue(f"{stem}.{layer}.{side}.key", f"{stem}.{layer}.{side}.value")
            for name in (pair.key, pair.value):
                declare(name, FLOAT, "batch_size", parts.architecture.heads, length, width)
            names[side].append(pair)
    return names["decoder"], names["encoder"]


def _named(parts: ModelParts, stem: str) -> list[KeyValue]:
    return [KeyValue(f"{stem}.{i}.key", f"{stem}.{i}.value") for i in _layers(parts)]


def _layers(parts: ModelParts) -> range:
    return range(parts.architecture.decoder_layers)


def _flat(names: Sequence[KeyValue]) -> list[str]:
    return [name for kv in names for name in (kv.key, kv.value)]

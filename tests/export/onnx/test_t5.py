"""The parts of a T5 compute what transformers computes, for every member of the family."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from lora_ft.export.onnx.graph import Graph, WeightFile
from lora_ft.export.onnx.graphs import decoder_model, encoder_model
from lora_ft.export.onnx.model_parts import Calls
from tests.export.family import CONFIGS, Graphs, assert_close, inputs, save_member
from tests.export.oracle import redraw, torch_logits, torch_model
from tests.tiny import CONFIG, save_tiny_t5


@dataclass
class Member:
    """The graphs of a checkpoint, and what transformers makes of the same files."""

    graphs: Graphs
    torch: T5ForConditionalGeneration


@pytest.fixture(scope="module", params=CONFIGS)
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Member:
    folder = save_member(tmp_path_factory.mktemp("t5"), request.param)
    return Member(Graphs.of(folder), torch_model(folder))


@pytest.mark.parametrize(("b", "s", "t"), [(1, 1, 1), (3, 7, 9), (2, 1, 12), (5, 16, 1), (8, 33, 5)])
def test_forced_logits_are_those_of_transformers(member: Member, b: int, s: int, t: int) -> None:
    batch = inputs(b, s, t)
    assert_close(member.graphs.forced(*batch), torch_logits(member.torch, *batch))


def test_texts_beyond_the_largest_distance_agree(member: Member) -> None:
    far = member.graphs.architecture.max_distance
    batch = inputs(2, far + 15, far + 11)
    assert_close(member.graphs.forced(*batch), torch_logits(member.torch, *batch))


def test_a_mask_may_hide_any_positions(member: Member) -> None:
    ids, _, decoder_ids = inputs(3, 9, 4)
    mask = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 0, 0, 0, 0]])
    assert_close(member.graphs.forced(ids, mask, decoder_ids), torch_logits(member.torch, ids, mask, decoder_ids))


def test_what_the_mask_hides_changes_nothing(member: Member) -> None:
    ids, mask, decoder_ids = inputs(4, 12, 5, seed=2)
    assert (mask == 0).any()
    noise = np.where(mask, ids, 7)
    assert_close(member.graphs.forced(ids, mask, decoder_ids), member.graphs.forced(noise, mask, decoder_ids))


def test_cross_keys_and_values_are_those_of_transformers(member: Member) -> None:
    ids, mask, _ = inputs(3, 7, 1)
    a, cross = member.graphs.architecture, member.graphs.encode(ids, mask)
    with torch.inference_mode():
        hidden = member.torch.encoder(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
        for i, block in enumerate(member.torch.decoder.block):
            attention = block.layer[1].EncDecAttention
            for kind, layer in (("key", attention.k), ("value", attention.v)):
                expected = layer(hidden).view(3, 7, a.heads, a.d_kv).transpose(1, 2).numpy()
                assert_close(cross[f"cross.{i}.{kind}"], expected)


@pytest.mark.parametrize("chunks", [[1] * 24, [3] * 8, [1, 5, 1, 2, 15], [20, 1, 1, 1, 1]], ids=str)
def test_decoding_in_steps_equals_transformers_in_one(member: Member, chunks: list[int]) -> None:
    ids, mask, decoder_ids = inputs(3, 7, sum(chunks), seed=1)
    a = member.graphs.architecture
    logits, best, cache = member.graphs.decode(member.graphs.encode(ids, mask), decoder_ids, chunks)
    assert_close(logits, torch_logits(member.torch, ids, mask, decoder_ids))
    assert_close(logits, member.graphs.forced(ids, mask, decoder_ids))
    assert np.array_equal(best, logits.argmax(-1))
    assert {array.shape for array in cache.values()} == {(3, a.heads, sum(chunks), a.d_kv)}


def test_no_position_sees_a_later_one(member: Member) -> None:
    ids, mask, decoder_ids = inputs(2, 6, 8)
    changed = decoder_ids.copy()
    changed[:, 5:] = (changed[:, 5:] + 11) % CONFIG["vocab_size"]
    a, b = member.graphs.forced(ids, mask, decoder_ids), member.graphs.forced(ids, mask, changed)
    assert_close(a[:, :5], b[:, :5])
    assert np.abs(a[:, 5:] - b[:, 5:]).max() > 0.1


def test_a_row_does_not_depend_on_its_batch(member: Member) -> None:
    ids, mask, decoder_ids = inputs(4, 11, 6)
    whole = member.graphs.forced(ids, mask, decoder_ids)
    for i, length in enumerate(mask.sum(1)):
        alone = member.graphs.forced(ids[i : i + 1, :length], mask[i : i + 1, :length], decoder_ids[i : i + 1])
        assert_close(whole[i : i + 1], alone)


def distances(a: int, b: int) -> dict[str, int]:
    return {"relative_attention_num_buckets": a, "relative_attention_max_distance": b}


SHAPES = st.fixed_dictionaries(
    {
        "model_type": st.sampled_from(["t5", "mt5", "umt5"]),
        "feed_forward_proj": st.sampled_from(["relu", "gated-relu", "gated-gelu", "gated-silu"]),
        "tie_word_embeddings": st.booleans(),
        "num_layers": st.integers(1, 3),
        "num_decoder_layers": st.integers(1, 3),
        "num_heads": st.integers(1, 5),
        "d_kv": st.one_of(st.integers(1, 17), st.sampled_from([8, 16, 24])),
        "d_model": st.integers(8, 40),
        "d_ff": st.integers(1, 70),
        "vocab_size": st.integers(20, 90),
        "distances": st.sampled_from([distances(4, 6), distances(8, 20), distances(12, 15), distances(32, 128)]),
    }
)


@settings(max_examples=25)
@given(shape=SHAPES, b=st.integers(1, 5), s=st.integers(1, 30), t=st.integers(2, 30), split=st.integers(1, 29))
def test_models_of_any_shape_agree_as_transformers_saves_them(
    shape: dict[str, Any], b: int, s: int, t: int, split: int
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        sizes = {name: value for name, value in shape.items() if name != "distances"}
        model = torch_model(redraw(save_tiny_t5(Path(scratch, "first"), **sizes, **shape["distances"]), seed=0))
        model.save_pretrained(Path(scratch, "again"))
        graphs = Graphs.of(Path(scratch, "again"))
        ids, mask, decoder_ids = inputs(b, s, t)
        ids, decoder_ids = ids % shape["vocab_size"], decoder_ids % shape["vocab_size"]
        expected = torch_logits(model, ids, mask, decoder_ids)
        chunks = [split, t - split] if split < t else [t]
        logits, _, _ = graphs.decode(graphs.encode(ids, mask), decoder_ids, chunks)
        close = 3e-5 * max(30, float(np.abs(expected).max()))
        assert_close(logits, expected, close)
        fixed, cache = graphs.encode(ids, mask), graphs.room(b, t + split)
        first, _, cache = graphs.call(fixed, cache, 0, decoder_ids[:, :-1], calls="step")
        last, _, _ = graphs.call(fixed, cache, t - 1, decoder_ids[:, -1:], calls="step")
        assert_close(np.concatenate([first, last], axis=1), expected, close)


@pytest.mark.parametrize("name", ["t5 1.1 and flan", "t5 1.0", "mt5", "tied mt5", "umt5"])
def test_what_transformers_saved_again_is_the_same_model(tmp_path: Path, name: str) -> None:
    model = torch_model(save_member(tmp_path / "first", name))
    model.save_pretrained(tmp_path / "again")
    batch = inputs(3, 7, 9)
    assert_close(Graphs.of(tmp_path / "again").forced(*batch), torch_logits(model, *batch))


def test_half_precision_weights_are_widened_as_transformers_does(tmp_path: Path) -> None:
    path = redraw(save_tiny_t5(tmp_path), seed=0) / "model.safetensors"
    half = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}
    save_file(half, path, metadata={"format": "pt"})
    batch = inputs(3, 7, 9)
    assert_close(Graphs.of(tmp_path).forced(*batch), torch_logits(torch_model(tmp_path), *batch))


@pytest.mark.parametrize(("kind", "forward"), [("t5", "relu"), ("mt5", "gated-gelu"), ("umt5", "gated-gelu")])
def test_what_a_config_leaves_out_has_transformers_default(tmp_path: Path, kind: str, forward: str) -> None:
    changes = {"model_type": kind, "feed_forward_proj": forward, "tie_word_embeddings": kind != "mt5"}
    folder = redraw(save_tiny_t5(tmp_path, **changes, **distances(32, 128)), seed=0)
    optional = {"feed_forward_proj", "tie_word_embeddings", "num_decoder_layers", *distances(0, 0)}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in optional}))
    batch = inputs(2, 150, 40)
    assert_close(Graphs.of(folder).forced(*batch), torch_logits(torch_model(folder), *batch))


@pytest.mark.parametrize("name", ["t5 1.0", "umt5", "tied mt5"])
def test_only_umt5_has_a_bias_for_each_layer(tmp_path: Path, name: str) -> None:
    graphs = Graphs.of(save_member(tmp_path, name))
    for stack, model in (("encoder", encoder_model(graphs.parts)), ("decoder", decoder_model(graphs.parts))):
        tables = [tensor.name for tensor in model.graph.initializer if "relative_attention_bias" in tensor.name]
        count = getattr(graphs.architecture, "layers" if stack == "encoder" else "decoder_layers")
        assert len(tables) == (count if name == "umt5" else 1)
        assert all(table.startswith(f"{stack}.block.") for table in tables)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_weight_is_stored_twice(tmp_path: Path, name: str) -> None:
    parts = Graphs.of(save_member(tmp_path, name)).parts
    decoders = (decoder_model(parts, calls=calls) for calls in get_args(Calls))
    for model in (encoder_model(parts), *decoders):
        large = [tensor.raw_data for tensor in model.graph.initializer if len(tensor.raw_data) > 256]
        assert len(set(large)) == len(large) > 5


def test_stored_weights_are_not_read_again(tmp_path: Path) -> None:
    parts = Graphs.of(save_member(tmp_path / "t5", "t5 1.0")).parts
    with WeightFile(tmp_path / "weights.bin") as file:
        decoder_model(parts, file)
        size = (tmp_path / "weights.bin").stat().st_size
        decoder_model(parts, file, calls="step")
    assert (tmp_path / "weights.bin").stat().st_size - size < 8192  # the tail of the buffer
    assert Graph("another", file).weight("lm_head", lambda: pytest.fail("read again")) == "lm_head"

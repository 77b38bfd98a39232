"""The graphs of a bundle: the decoder at any positions, the greedy loops, ranks and selections."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from safetensors.numpy import load_file
from transformers import T5ForConditionalGeneration

from lora_ft.export.checkpoint.reader import Checkpoint
from lora_ft.export.onnx.graph import IR_VERSION, WeightFile
from lora_ft.export.onnx.graphs import (
    decoder_model,
    encoder_model,
    log_softmax_model,
    reorder_cache_model,
    single_model,
    top_k_model,
)
from lora_ft.export.onnx.model_parts import Calls, ModelParts
from lora_ft.export.precision import NAMED
from lora_ft.export.runtime.session import open_session
from tests.export.family import Graphs, assert_close, inputs, save_member
from tests.export.oracle import END, PAD, torch_greedy, torch_logits, torch_model

LIMIT = 14
# Of weights with which some rows end and others go on; seeds were searched.
ENDING = {
    "t5 1.1 and flan": (0, 1.5),
    "t5 1.0": (22, 2.5),
    "mt5": (6, 1.5),
    "tied mt5": (3, 1.5),
    "umt5": (46, 2.5),
    "gated-silu": (36, 1.5),
}


@dataclass
class Member:
    """The graphs and the transformers model of a checkpoint, with sources of different lengths."""

    graphs: Graphs
    torch: T5ForConditionalGeneration
    ids: np.ndarray
    mask: np.ndarray

    def rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return some of the sources, without all-padding columns."""
        mask = self.mask[numbers]
        longest = mask.sum(1).max()
        return self.ids[numbers, :longest], mask[:, :longest]


@pytest.fixture(scope="module", params=ENDING)
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Member:
    folder = save_member(tmp_path_factory.mktemp("graphs"), request.param, *ENDING[request.param])
    ids, mask, _ = inputs(10, 15, 1, seed=5)
    return Member(Graphs.of(folder), torch_model(folder), ids, mask)


@pytest.fixture(scope="module")
def flan(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return Graphs.of(save_member(tmp_path_factory.mktemp("flan"), "t5 1.1 and flan"))


def ended(tokens: np.ndarray) -> np.ndarray:
    """Return a mask of the rows with </s>."""
    return (tokens == END).any(axis=1)


@pytest.mark.parametrize("least", [0, 1, 6, LIMIT])
def test_greedy_tokens_equal_those_of_transformers(member: Member, least: int) -> None:
    expected = torch_greedy(member.torch, member.ids, member.mask, LIMIT, least)
    assert least == LIMIT or 0 < ended(expected).sum() < len(expected)
    assert np.array_equal(member.graphs.greedy(member.ids, member.mask, LIMIT, least), expected)
    assert np.array_equal(member.graphs.single(member.ids, member.mask, LIMIT, least), expected)


def test_rows_respect_the_minimum_length(member: Member) -> None:
    free, limited = (member.graphs.greedy(member.ids, member.mask, LIMIT, least) for least in (0, 9))
    assert (free[:, :9] == END).any()
    assert not (limited[:, :9] == END).any()
    going = ~ended(free[:, :9])  # nobody held these back
    assert going.any()
    assert np.array_equal(free[going, :9], limited[going, :9])


def test_the_loop_stops_when_every_row_has_ended(member: Member) -> None:
    tokens = member.graphs.greedy(member.ids, member.mask, LIMIT)
    ids, mask = member.rows(np.flatnonzero(ended(tokens)))
    longest = np.where(tokens == END, np.arange(1, tokens.shape[1] + 1), 0).max()
    assert longest < LIMIT
    for generated in (member.graphs.greedy(ids, mask, LIMIT), member.graphs.single(ids, mask, LIMIT)):
        assert generated.shape == (len(ids), longest)


def test_only_padding_follows_the_end_of_a_row(member: Member) -> None:
    tokens = member.graphs.greedy(member.ids, member.mask, LIMIT)
    after = np.cumsum(tokens == END, axis=1) - (tokens == END) > 0
    assert after.any() and (tokens[after] == PAD).all()


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_loop_stops_at_its_limit(member: Member, limit: int) -> None:
    whole = member.graphs.greedy(member.ids, member.mask, LIMIT)
    assert not ended(whole[:, :limit]).all()
    assert np.array_equal(member.graphs.greedy(member.ids, member.mask, limit), whole[:, :limit])
    assert np.array_equal(member.graphs.single(member.ids, member.mask, limit), whole[:, :limit])


def test_a_row_does_not_depend_on_its_batch(member: Member) -> None:
    together = member.graphs.greedy(member.ids, member.mask, LIMIT)
    for i in range(len(member.ids)):
        alone = member.graphs.greedy(*member.rows(np.array([i])), LIMIT)[0]
        assert np.array_equal(alone, together[i, : len(alone)])
        assert (together[i, len(alone) :] == PAD).all()


@pytest.mark.parametrize("length", [6, 11])
def test_step_and_decoder_write_the_same_cache(member: Member, length: int) -> None:
    """Start with several tokens, then step one by one, with and without spare capacity."""
    ids, mask, decoder_ids = inputs(3, 7, 6)
    fixed, cache = member.graphs.encode(ids, mask), member.graphs.room(3, length, np.nan)
    expected, best, caches = member.graphs.decode(fixed, decoder_ids, [6])
    begun = 0
    for count in (3, 1, 1, 1):
        new = decoder_ids[:, begun : begun + count]
        some, tokens, cache = member.graphs.call(fixed, cache, begun, new, calls="step")
        assert_close(some, expected[:, begun : begun + count])
        assert np.array_equal(tokens, best[:, begun : begun + count])
        begun += count
    for name, values in caches.items():
        assert_close(cache[name][:, :, :6], values)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-w4"])
@pytest.mark.parametrize("name", ["t5 1.1 and flan", "tied mt5"])
def test_logits_of_labels_are_those_of_a_step(tmp_path: Path, name: str, precision: str) -> None:
    graphs, tokens = Graphs.of(save_member(tmp_path, name), NAMED[precision]), [1, 4, 5, 9, 17, 30, 41]
    labels = open_session(decoder_model(graphs.parts, calls="step", tokens=tokens).SerializeToString(), threads=1)
    ids, mask, decoder_ids = inputs(3, 7, 5)
    fixed, cache = graphs.encode(ids, mask), graphs.room(3, 8, np.nan)
    presents = [name.replace("past", "present") for name in cache]
    for begin, end in ((0, 3), (3, 4), (4, 5)):
        new = decoder_ids[:, begin:end]
        feed = {"input_ids": new, "lengths": np.array([begin]), "forbid_eos": np.array(False)}
        logits, *caches = labels.run(["logits", *presents], fixed | cache | feed)
        expected, _, cache = graphs.call(fixed, cache, begin, new, calls="step")
        assert_close(logits, expected[..., tokens])
        assert np.array_equal(logits, expected[..., tokens]) or "cpu" not in NAMED[precision].independent
        for value, other in zip(caches, cache.values(), strict=True):
            assert np.array_equal(value, other, equal_nan=True)


def test_a_single_row_may_add_and_remove_several_tokens(member: Member) -> None:
    ids, mask, decoder_ids = inputs(1, 7, 9)
    fixed, cache = member.graphs.encode(ids, mask), member.graphs.room(1, 12, np.nan)
    expected = member.graphs.forced(ids, mask, decoder_ids)
    _, _, cache = member.graphs.call(fixed, cache, 0, decoder_ids[:, :2], calls="step")
    _, _, cache = member.graphs.call(fixed, cache, 2, (decoder_ids[:, 2:7] + 9) % 60 + 2, calls="step")
    some, _, cache = member.graphs.call(fixed, cache, 2, decoder_ids[:, 2:5], calls="step")
    assert_close(some, expected[:, 2:5])
    assert_close(member.graphs.call(fixed, cache, 5, decoder_ids[:, 5:], calls="step")[0], expected[:, 5:])


@pytest.mark.parametrize("calls", ["step", "any", "draft"])
def test_rows_continue_from_different_lengths(member: Member, calls: Calls) -> None:
    """Reject drafts: rows keep 1, 3, 2 and 0 of three drafted tokens, then continue."""
    ids, mask, decoder_ids = inputs(4, 7, 9)
    fixed, lengths = member.graphs.encode(ids, mask), np.array([1, 3, 2, 0])
    drafted = decoder_ids[:, :4].copy()
    rejected = np.arange(4) > lengths[:, None]
    drafted[rejected] = (drafted[rejected] + 17) % 60 + 2
    expected = torch_logits(member.torch, ids, mask, decoder_ids)
    _, _, cache = member.graphs.call(fixed, member.graphs.room(4, 9), 0, drafted)
    for turn in range(5):
        now = (lengths + 1 + turn)[:, None]
        token = np.take_along_axis(decoder_ids, now, axis=1)
        logits, _, cache = member.graphs.call(fixed, cache, now[:, 0], token, calls=calls)
        assert_close(logits, np.take_along_axis(expected, now[..., None], axis=1))


@settings(max_examples=30)
@given(data=st.data(), room=st.integers(12, 20))
def test_removed_tokens_do_not_affect_later_logits(flan: Graphs, data: st.DataObject, room: int) -> None:
    ids, mask, decoder_ids = inputs(3, 6, 12)
    fixed, expected = flan.encode(ids, mask), flan.forced(ids, mask, decoder_ids)
    cache, lengths = flan.room(3, room), np.zeros(3, np.int64)
    while lengths.max() < 12:
        count = data.draw(st.integers(1, 12 - int(lengths.max())))
        counts = np.array([data.draw(st.integers(1, count)) for _ in lengths])
        places = lengths[:, None] + np.arange(count)
        tokens = np.take_along_axis(decoder_ids, places, axis=1)
        is_kept = np.arange(count) < counts[:, None]
        logits, best, cache = flan.call(fixed, cache, lengths, np.where(is_kept, tokens, (tokens + 5) % 60 + 2))
        assert np.array_equal(best, logits.argmax(-1))
        assert_close(logits[is_kept], np.take_along_axis(expected, places[..., None], axis=1)[is_kept])
        lengths = lengths + counts


@pytest.mark.parametrize("copies", [2, 3, 5])
@pytest.mark.parametrize("sources", [1, 3])
def test_rows_may_share_a_source(member: Member, sources: int, copies: int) -> None:
    ids, mask, _ = inputs(sources, 7, 1, seed=3)
    _, _, decoder_ids = inputs(sources * copies, 7, 6, seed=4)
    apart = np.repeat(ids, copies, axis=0), np.repeat(mask, copies, axis=0)
    logits, best, cache = member.graphs.decode(member.graphs.encode(ids, mask), decoder_ids, [1, 3, 2])
    assert_close(logits, torch_logits(member.torch, *apart, decoder_ids))
    expected, tokens, caches = member.graphs.decode(member.graphs.encode(*apart), decoder_ids, [1, 3, 2])
    assert_close(logits, expected)
    assert np.array_equal(best, tokens)
    for name, values in caches.items():
        assert_close(cache[name], values)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 1], [2], [1, 1, 1, 0, 3, 3], []])
@pytest.mark.parametrize("length", [0, 5])
def test_cache_rows_are_selected(flan: Graphs, rows: list[int], length: int) -> None:
    a, rng = flan.architecture, np.random.default_rng(0)
    names = [f"{i}.{kind}" for i in range(a.decoder_layers) for kind in ("key", "value")]
    values = {name: rng.standard_normal((4, a.heads, length, a.d_kv), np.float32) for name in names}
    session = open_session(reorder_cache_model(flan.parts).SerializeToString(), threads=1)
    selected = session.run([f"selected.{name}" for name in names], values | {"rows": np.array(rows, np.int64)})
    assert all(np.array_equal(array, values[name][rows]) for name, array in zip(names, selected, strict=True))


def ranked(parts: ModelParts, logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (log-probabilities, tokens) of the likeliest tokens."""
    log_softmax, top_k = (
        open_session(build(parts).SerializeToString(), threads=1) for build in (log_softmax_model, top_k_model)
    )
    (log_probs,) = log_softmax.run(["log_probs"], {"logits": logits})
    return tuple(top_k.run(["highest", "tokens"], {"scores": log_probs, "count": np.array([count])}))


@pytest.mark.parametrize("count", [1, 4, 80, 500])
def test_the_likeliest_tokens_are_ranked_with_their_log_probabilities(flan: Graphs, count: int) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 2, flan.architecture.vocabulary), np.float32) * 9
    log_probs, tokens = ranked(flan.parts, logits, count)
    expected = torch.log_softmax(torch.from_numpy(logits), -1).topk(min(count, flan.architecture.vocabulary))
    assert_close(log_probs, expected.values.numpy())
    assert np.array_equal(tokens, expected.indices.numpy())


def test_a_forbidden_token_is_ranked_last(flan: Graphs) -> None:
    logits = np.zeros((1, 1, flan.architecture.vocabulary), np.float32)
    logits[0, 0, 7], logits[0, 0, 5] = -np.inf, 2
    log_probs, tokens = ranked(flan.parts, logits, 80)
    assert (tokens[0, 0, 0], tokens[0, 0, -1]) == (5, 7)
    assert np.isneginf(log_probs[0, 0, -1]) and np.isfinite(log_probs[0, 0, :-1]).all()


def test_graphs_use_an_ir_version_of_old_runtimes(flan: Graphs) -> None:
    builds = encoder_model, log_softmax_model, top_k_model, reorder_cache_model, single_model
    decoders = (decoder_model(flan.parts, calls=calls) for calls in get_args(Calls))
    for model in (*(build(flan.parts) for build in builds), *decoders):
        assert model.ir_version == IR_VERSION == 10
        assert {entry.domain for entry in model.opset_import} == {"", "com.microsoft"}


def test_the_graphs_of_a_folder_share_every_weight(member: Member, tmp_path: Path) -> None:
    used: dict[str, dict[int, int]] = {}
    with WeightFile(tmp_path / "weights.bin") as file:
        step = partial(decoder_model, calls="step")
        draft = partial(decoder_model, calls="draft")
        for name, build in (("encoder", encoder_model), ("decoder", decoder_model), ("step", step), ("draft", draft)):
            model = build(member.graphs.parts, file)
            entries = [
                {entry.key: entry.value for entry in tensor.external_data}
                for tensor in model.graph.initializer
                if tensor.data_location == TensorProto.EXTERNAL
            ]
            used[name] = {int(entry["offset"]): int(entry["length"]) for entry in entries}
            assert sum(len(tensor.raw_data) for tensor in model.graph.initializer) < 10_000
    assert used["decoder"] == used["step"] == used["draft"]
    assert len(used["encoder"].keys() & used["decoder"].keys()) == 1  # the embedding
    end = 0
    for offset, length in sorted((used["encoder"] | used["decoder"]).items()):
        assert 0 <= offset - end < 4096
        end = offset + length
    assert end == (tmp_path / "weights.bin").stat().st_size


def test_every_weight_affects_the_output(tmp_path: Path) -> None:
    """A change of any weight changes the outputs of the graphs."""
    folder = save_member(tmp_path / "t5", "t5 1.1 and flan")
    weights = Checkpoint(folder)

    class Changed:
        name = ""

        def __contains__(self, name: str) -> bool:
            return name in weights

        def __getitem__(self, name: str) -> np.ndarray:
            return weights[name] * np.float32(1.5) if name == self.name else weights[name]

        def shape(self, name: str) -> tuple[int, ...]:
            return weights.shape(name)

        def peak(self, name: str) -> float:
            return 0.0

        def moments(self, name: str) -> np.ndarray | None:
            return None

    original, changed = Graphs.of(folder), Changed()
    batch = inputs(2, 9, 9)
    expected = original.forced(*batch)
    for name in load_file(folder / "model.safetensors"):
        changed.name = name
        assert np.abs(Graphs(original.architecture, changed).forced(*batch) - expected).max() > 1e-3, name

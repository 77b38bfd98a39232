"""The graphs of a T5 say what transformers' T5ForConditionalGeneration says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from export.checkpoint import Checkpoint
from export.errors import UsageError
from export.graph import IR_VERSION
from export.t5 import T5, _bucket
from tests.export.oracle import redraw, torch_logits, torch_model
from tests.tiny import CONFIG, save_tiny_t5

CLOSE = 1e-4  # logits of these models reach 25
CONFIGS: dict[str, dict[str, Any]] = {
    "flan": {},
    "original": {
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
        "num_heads": 4,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    },
    "gated and tied": {
        "tie_word_embeddings": True,
        "num_heads": 5,
        "d_kv": 4,
        "d_model": 24,
        "relative_attention_num_buckets": 16,
        "relative_attention_max_distance": 40,
    },
    "relu and untied": {
        "feed_forward_proj": "relu",
        "num_heads": 2,
        "d_kv": 16,
        "d_model": 20,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "relative_attention_num_buckets": 4,
        "relative_attention_max_distance": 6,
    },
    "deep": {
        "num_layers": 4,
        "num_decoder_layers": 4,
        "num_heads": 1,
        "layer_norm_epsilon": 1e-3,
        "relative_attention_num_buckets": 12,
        "relative_attention_max_distance": 15,
    },
}


@dataclass
class Graphs:
    """The two graphs of a checkpoint under ONNX Runtime, and what transformers makes of the same files."""

    encoder: ort.InferenceSession
    decoder: ort.InferenceSession
    torch: T5ForConditionalGeneration
    layers: int
    heads: int
    d_kv: int
    max_distance: int

    @classmethod
    def of(cls, folder: Path) -> Graphs:
        t5 = T5(Checkpoint(folder))
        encoder, decoder = (
            ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            for model in (t5.encoder(), t5.decoder())
        )
        return cls(encoder, decoder, torch_model(folder), t5.decoder_layers, t5.heads, t5.d_kv, t5.max_distance)

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        """The decoder's inputs that stay the same."""
        names = [output.name for output in self.encoder.get_outputs()]
        cross = self.encoder.run(names, {"input_ids": ids, "attention_mask": mask})
        return dict(zip(names, cross, strict=True), encoder_attention_mask=mask)

    def decode(
        self, fixed: dict[str, np.ndarray], decoder_ids: np.ndarray, chunks: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(logits, best tokens) of all positions, so many of them at a time."""
        names = [f"{layer}.{kind}" for layer in range(self.layers) for kind in ("key", "value")]
        cache = [np.zeros((len(decoder_ids), self.heads, 0, self.d_kv), np.float32)] * len(names)
        logits, best = [], []
        for part in np.split(decoder_ids, np.cumsum(chunks)[:-1], axis=1):
            feed = fixed | {f"past.{name}": value for name, value in zip(names, cache, strict=True)}
            wanted = ["logits", "next", *(f"present.{name}" for name in names)]
            some, chosen, *cache = self.decoder.run(wanted, feed | {"input_ids": part})
            logits.append(some)
            best.append(chosen)
        assert {array.shape for array in cache} == {(len(decoder_ids), self.heads, decoder_ids.shape[1], self.d_kv)}
        return np.concatenate(logits, axis=1), np.concatenate(best, axis=1)

    def forced(self, ids: np.ndarray, mask: np.ndarray, decoder_ids: np.ndarray) -> np.ndarray:
        """Logits of all positions in one call."""
        return self.decode(self.encode(ids, mask), decoder_ids, [decoder_ids.shape[1]])[0]


@pytest.fixture(scope="module", params=CONFIGS)
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    folder = redraw(save_tiny_t5(tmp_path_factory.mktemp("t5"), **CONFIGS[request.param]), seed=3)
    return Graphs.of(folder)


def inputs(b: int, s: int, t: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sources, a mask of rows of unlike lengths (the first is whole), and decoder inputs."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(s) < rng.integers(1, s + 1, b)[:, None]).astype(np.int64)
    mask[0] = 1
    decoder_ids = rng.integers(2, CONFIG["vocab_size"], (b, t))
    decoder_ids[:, 0] = 0
    return np.where(mask, rng.integers(2, CONFIG["vocab_size"], (b, s)), 0), mask, decoder_ids


def assert_close(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert np.abs(a - b).max() < CLOSE


@pytest.mark.parametrize(("b", "s", "t"), [(1, 1, 1), (3, 7, 9), (2, 1, 12), (5, 16, 1), (8, 33, 5)])
def test_forced_logits_are_those_of_transformers(graphs: Graphs, b: int, s: int, t: int) -> None:
    batch = inputs(b, s, t)
    assert_close(graphs.forced(*batch), torch_logits(graphs.torch, *batch))


def test_texts_beyond_the_largest_distance_agree(graphs: Graphs) -> None:
    batch = inputs(2, graphs.max_distance + 15, graphs.max_distance + 11)
    assert_close(graphs.forced(*batch), torch_logits(graphs.torch, *batch))


def test_a_mask_may_hide_any_positions(graphs: Graphs) -> None:
    ids, _, decoder_ids = inputs(3, 9, 4)
    mask = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 0, 0, 0, 0]])
    assert_close(graphs.forced(ids, mask, decoder_ids), torch_logits(graphs.torch, ids, mask, decoder_ids))


def test_what_the_mask_hides_changes_nothing(graphs: Graphs) -> None:
    ids, mask, decoder_ids = inputs(4, 12, 5, seed=2)
    assert (mask == 0).any()
    noise = np.where(mask, ids, 7)
    assert_close(graphs.forced(ids, mask, decoder_ids), graphs.forced(noise, mask, decoder_ids))


def test_cross_keys_and_values_are_those_of_transformers(graphs: Graphs) -> None:
    ids, mask, _ = inputs(3, 7, 1)
    cross = graphs.encode(ids, mask)
    with torch.inference_mode():
        hidden = graphs.torch.encoder(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
        for i, block in enumerate(graphs.torch.decoder.block):
            attention = block.layer[1].EncDecAttention
            for kind, layer in (("key", attention.k), ("value", attention.v)):
                expected = layer(hidden).view(3, 7, graphs.heads, graphs.d_kv).transpose(1, 2).numpy()
                assert_close(cross[f"cross.{i}.{kind}"], expected)


@pytest.mark.parametrize("chunks", [[1] * 24, [3] * 8, [1, 5, 1, 2, 15], [20, 1, 1, 1, 1]], ids=str)
def test_decoding_in_steps_equals_transformers_in_one(graphs: Graphs, chunks: list[int]) -> None:
    ids, mask, decoder_ids = inputs(3, 7, sum(chunks), seed=1)
    logits, best = graphs.decode(graphs.encode(ids, mask), decoder_ids, chunks)
    assert_close(logits, torch_logits(graphs.torch, ids, mask, decoder_ids))
    assert_close(logits, graphs.forced(ids, mask, decoder_ids))
    assert np.array_equal(best, logits.argmax(-1))


def test_no_position_sees_a_later_one(graphs: Graphs) -> None:
    ids, mask, decoder_ids = inputs(2, 6, 8)
    changed = decoder_ids.copy()
    changed[:, 5:] = (changed[:, 5:] + 11) % CONFIG["vocab_size"]
    a, b = graphs.forced(ids, mask, decoder_ids), graphs.forced(ids, mask, changed)
    assert_close(a[:, :5], b[:, :5])
    assert np.abs(a[:, 5:] - b[:, 5:]).max() > 0.1


def test_a_row_does_not_depend_on_its_batch(graphs: Graphs) -> None:
    ids, mask, decoder_ids = inputs(4, 11, 6)
    whole = graphs.forced(ids, mask, decoder_ids)
    for i, length in enumerate(mask.sum(1)):
        alone = graphs.forced(ids[i : i + 1, :length], mask[i : i + 1, :length], decoder_ids[i : i + 1])
        assert_close(whole[i : i + 1], alone)


@pytest.mark.parametrize("name", ["flan", "original"])
def test_what_transformers_saved_again_is_the_same_model(tmp_path: Path, name: str) -> None:
    model = torch_model(redraw(save_tiny_t5(tmp_path / "first", **CONFIGS[name]), seed=0))
    model.save_pretrained(tmp_path / "again")
    batch = inputs(3, 7, 9)
    assert_close(Graphs.of(tmp_path / "again").forced(*batch), torch_logits(model, *batch))


def test_half_precision_weights_are_widened_as_transformers_does(tmp_path: Path) -> None:
    path = redraw(save_tiny_t5(tmp_path), seed=0) / "model.safetensors"
    half = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}
    save_file(half, path, metadata={"format": "pt"})
    graphs, batch = Graphs.of(tmp_path), inputs(3, 7, 9)
    assert_close(graphs.forced(*batch), torch_logits(graphs.torch, *batch))


def test_what_a_config_leaves_out_has_transformers_default(tmp_path: Path) -> None:
    folder = save_tiny_t5(
        tmp_path, feed_forward_proj="relu", tie_word_embeddings=True, relative_attention_num_buckets=32
    )
    redraw(folder, seed=0)
    optional = {
        "feed_forward_proj",
        "tie_word_embeddings",
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
        "num_decoder_layers",
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in optional}))
    graphs, batch = Graphs.of(folder), inputs(2, 150, 40)
    assert_close(graphs.forced(*batch), torch_logits(graphs.torch, *batch))


def test_the_graphs_are_of_an_ir_that_old_runtimes_read(checkpoint: Path) -> None:
    t5 = T5(Checkpoint(checkpoint))
    assert t5.encoder().ir_version == t5.decoder().ir_version == IR_VERSION == 10


def test_no_weight_is_stored_twice(checkpoint: Path) -> None:
    t5 = T5(Checkpoint(checkpoint))
    for model in (t5.encoder(), t5.decoder()):
        large = [tensor.raw_data for tensor in model.graph.initializer if len(tensor.raw_data) > 256]
        assert len(set(large)) == len(large)


@pytest.mark.parametrize("kind", ["mt5", "bart", "umt5", None])
def test_other_models_are_refused(tmp_path: Path, kind: str | None) -> None:
    folder = save_tiny_t5(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    with pytest.raises(UsageError, match=f"model of type '{kind}'.*only t5") as caught:
        T5(Checkpoint(folder))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["gated-silu", "gelu", "gated-relu"])
def test_other_activations_are_refused(tmp_path: Path, kind: str) -> None:
    folder = save_tiny_t5(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"feed_forward_proj": kind}))
    with pytest.raises(UsageError, match=f"'{kind}' is not supported.*gated-gelu"):
        T5(Checkpoint(folder))


def transformers_bucket(offset: np.ndarray, buckets: int, far: int, *, bidirectional: bool) -> np.ndarray:
    return T5Attention._relative_position_bucket(torch.from_numpy(offset), bidirectional, buckets, far).numpy()


def at_an_edge(offset: np.ndarray, buckets: int, far: int, *, bidirectional: bool) -> np.ndarray:
    """Whether a distance is where one logarithmic bucket ends and the next begins, but for rounding."""
    one_way = buckets // 2 if bidirectional else buckets
    exact = one_way // 2
    place = np.log(np.maximum(np.abs(offset), 1) / exact) / np.log(far / exact) * (one_way - exact)
    return (np.abs(place - place.round()) < 1e-5) & (np.abs(offset) > exact)


@pytest.mark.parametrize("bidirectional", [True, False])
@given(
    offset=st.lists(st.integers(-2000, 2000), min_size=1, max_size=50).map(np.array),
    buckets=st.integers(4, 64),
    beyond=st.integers(1, 1000),
)
def test_buckets_are_those_of_transformers(offset: np.ndarray, buckets: int, beyond: int, bidirectional: bool) -> None:
    far = buckets // 2 + beyond  # the largest distance lies beyond the exact buckets
    expected = transformers_bucket(offset, buckets, far, bidirectional=bidirectional)
    edge = at_an_edge(offset, buckets, far, bidirectional=bidirectional)
    # the graphs look up no distance beyond the largest, so that must be its bucket's
    for given_offset in (offset, offset.clip(-far, far)):
        made = _bucket(given_offset, buckets, far, bidirectional=bidirectional)
        assert np.array_equal(made[~edge], expected[~edge])
        assert (np.abs(made - expected) <= edge).all()  # torch's and numpy's logarithms may differ in the last bit


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (64, 256), (32, 256), (32, 64), (16, 128)])
def test_every_bucket_of_real_models_is_that_of_transformers(buckets: int, far: int, bidirectional: bool) -> None:
    offset = np.arange(-2 * far, 2 * far + 1)
    made = _bucket(offset, buckets, far, bidirectional=bidirectional)
    assert np.array_equal(made, transformers_bucket(offset, buckets, far, bidirectional=bidirectional))
    never = {buckets // 2} if bidirectional else set()  # a key after the query is at least one step away
    assert set(made) == set(range(buckets)) - never

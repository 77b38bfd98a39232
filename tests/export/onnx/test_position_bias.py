"""Relative positions: buckets are those of transformers, and a graph's look-up gives the bias of any positions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from lora_ft.export.onnx.graph import FLOAT, INT64, Graph
from lora_ft.export.onnx.position_bias import MASKED, bias_rows, bucket, index_rows
from lora_ft.export.runtime.session import open_session

BUCKETS, FAR, HEADS = 8, 20, 3
TABLE = np.random.default_rng(0).standard_normal((BUCKETS, HEADS), np.float32)


def transformers_bucket(offset: np.ndarray, buckets: int, far: int, *, bidirectional: bool) -> np.ndarray:
    return T5Attention._relative_position_bucket(torch.from_numpy(offset), bidirectional, buckets, far).numpy()


def at_an_edge(offset: np.ndarray, buckets: int, far: int, *, bidirectional: bool) -> np.ndarray:
    """Return whether a distance is at the edge of a logarithmic bucket, where rounding decides."""
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
        actual = bucket(given_offset, buckets, far, bidirectional=bidirectional)
        assert np.array_equal(actual[~edge], expected[~edge])
        assert (np.abs(actual - expected) <= edge).all()  # torch's and numpy's logarithms may differ in the last bit


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (64, 256), (32, 256), (32, 64), (16, 128)])
def test_every_bucket_of_real_models_is_that_of_transformers(buckets: int, far: int, bidirectional: bool) -> None:
    offset = np.arange(-2 * far, 2 * far + 1)
    actual = bucket(offset, buckets, far, bidirectional=bidirectional)
    assert np.array_equal(actual, transformers_bucket(offset, buckets, far, bidirectional=bidirectional))
    never = {buckets // 2} if bidirectional else set()  # a key after the query is at least one step away
    assert set(actual) == set(range(buckets)) - never


@pytest.mark.parametrize("causal", [True, False])
def test_there_is_a_row_for_every_offset_and_one_for_what_lies_ahead(causal: bool) -> None:
    rows = bias_rows(TABLE, BUCKETS, FAR, causal=causal)
    assert rows.dtype == np.float32
    for offset in range(-FAR, 1 if causal else FAR + 1):
        assert np.array_equal(
            rows[offset + FAR], TABLE[bucket(np.array(offset), BUCKETS, FAR, bidirectional=not causal)]
        )
    assert len(rows) == 2 * FAR + 1 + causal
    assert not causal or (rows[-1] == MASKED).all()


Bias = Callable[[np.ndarray, np.ndarray], np.ndarray]


def looked_up(causal: bool) -> Bias:
    """The bias [b,q,k,heads] that a graph gives to positions."""
    g = Graph("bias")
    query, key = g.input("query", INT64, "b", "q"), g.input("key", INT64, "b", "k")
    index = index_rows(g, query, key, FAR, causal=causal)
    table = g.constant(bias_rows(TABLE, BUCKETS, FAR, causal=causal), "table")
    g.op("Gather", table, index, output=g.output("bias", FLOAT, "b", "q", "k", HEADS))
    session = open_session(g.model().SerializeToString(), threads=1)
    return lambda query, key: session.run(None, {"query": query, "key": key})[0]


@pytest.fixture(scope="module", params=[True, False], ids=["causal", "both ways"])
def direction(request: pytest.FixtureRequest) -> tuple[bool, Bias]:
    return request.param, looked_up(request.param)


@pytest.mark.parametrize("length", [1, 7, 60])
def test_the_bias_of_running_positions_is_that_of_transformers(direction: tuple[bool, Bias], length: int) -> None:
    causal, bias = direction
    config = T5Config(
        num_heads=HEADS, relative_attention_num_buckets=BUCKETS, relative_attention_max_distance=FAR, is_decoder=causal
    )
    attention = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    attention.relative_attention_bias.weight.data = torch.from_numpy(TABLE)
    with torch.inference_mode():
        expected = attention.compute_bias(length, length)[0].permute(1, 2, 0).numpy()
    position = np.arange(length)[None]
    actual = bias(position, position)[0]
    ahead = position > position.T if causal else np.zeros((length, length), bool)
    assert np.array_equal(actual[~ahead], expected[~ahead])
    assert (actual[ahead] == MASKED).all()


ROWS = st.integers(1, 3)
POSITION = st.one_of(st.integers(0, 50), st.integers(10**6, 10**6 + 50))


@given(data=st.data(), b=ROWS, q=st.integers(1, 4), k=st.integers(1, 6))
def test_a_bias_depends_on_the_offset_alone(
    direction: tuple[bool, Bias], data: st.DataObject, b: int, q: int, k: int
) -> None:
    causal, bias = direction
    query, key = (np.array(data.draw(st.lists(POSITION, min_size=b * n, max_size=b * n))).reshape(b, n) for n in (q, k))
    offset = key[:, None, :] - query[:, :, None]
    expected = TABLE[bucket(offset.clip(-FAR, FAR), BUCKETS, FAR, bidirectional=not causal)]
    if causal:
        expected[offset > 0] = MASKED
    assert np.array_equal(bias(query, key), expected)

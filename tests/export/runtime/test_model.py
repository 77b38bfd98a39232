"""The graphs behind arrays: steps, caches and choices of rows that leave no trace of what they should not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.runtime import model as module
from export.runtime.model import HOLE, Cache, Model, Source
from tests.export.oracle import END, PAD, ragged, shifted, torch_greedy, torch_logits, torch_model
from tests.tiny import CONFIG

LAYERS, HEADS, D_KV, VOCABULARY = (CONFIG[key] for key in ("num_decoder_layers", "num_heads", "d_kv", "vocab_size"))
CLOSE = 1e-4
ROWS = [[*range(5, 25), END], [END], [*range(7, 19), END], [28, 29, 30, END]]
IDS, MASK = ragged(ROWS)
TOKENS = np.random.default_rng(0).integers(2, VOCABULARY, (len(ROWS), 9))


@pytest.fixture
def model(published: Path) -> Model:
    return Model(published, (LAYERS, HEADS, D_KV), 1)


@pytest.fixture(scope="module")
def logits(checkpoint: Path) -> np.ndarray:
    """transformers' of `TOKENS` [b, q, vocabulary]."""
    return torch_logits(torch_model(checkpoint), IDS, MASK, TOKENS)


def at(start: int, count: int, rows: int = len(ROWS)) -> np.ndarray:
    """Positions of so many tokens."""
    return np.tile(np.arange(start, start + count), (rows, 1))


def read(cache: Cache) -> list[np.ndarray]:
    return [value.numpy() for value in cache.values]


def assert_close(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert np.abs(a - b).max() < CLOSE


def test_an_empty_cache_holds_nothing(model: Model) -> None:
    cache = model.empty(3)
    assert cache.positions.shape == (3, 0)
    assert [value.shape for value in read(cache)] == [(3, HEADS, 0, D_KV)] * (2 * LAYERS)


def test_a_source_holds_its_mask_and_a_key_and_a_value_of_each_layer(model: Model) -> None:
    source = model.encode(IDS, MASK)
    assert source.rows == len(ROWS)
    mask, *cross = (value.numpy() for value in source.values)
    assert np.array_equal(mask, MASK)
    assert [value.shape for value in cross] == [(len(ROWS), HEADS, IDS.shape[1], D_KV)] * (2 * LAYERS)


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 5], [1, 7, 1]], ids=str)
def test_logits_of_tokens_in_any_portions_are_those_of_transformers(
    model: Model, logits: np.ndarray, chunks: list[int]
) -> None:
    source, cache = model.encode(IDS, MASK), model.empty(len(ROWS))
    begin = 0
    for count in chunks:
        made = model.logits(source, cache, TOKENS[:, begin : begin + count], at(begin, count))
        assert_close(made, logits[:, begin : begin + count])
        begin += count
        assert np.array_equal(cache.positions, at(0, begin))
        assert {value.shape for value in read(cache)} == {(len(ROWS), HEADS, begin, D_KV)}


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [3, 6]], ids=str)
def test_a_step_gives_the_likeliest_token_after_each(model: Model, logits: np.ndarray, chunks: list[int]) -> None:
    source, cache = model.encode(IDS, MASK), model.empty(len(ROWS))
    begin = 0
    for count in chunks:
        best = model.step(source, cache, TOKENS[:, begin : begin + count], at(begin, count))
        assert best.dtype == np.int64
        assert np.array_equal(best, logits.argmax(-1)[:, begin : begin + count])
        begin += count


@pytest.mark.parametrize("count", [1, 2, 10, VOCABULARY, VOCABULARY + 20])
def test_the_likeliest_tokens_come_with_their_log_probabilities(model: Model, logits: np.ndarray, count: int) -> None:
    source, cache = model.encode(IDS, MASK), model.empty(len(ROWS))
    expected = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    for turn in range(3):
        log_probs, tokens = model.likeliest(source, cache, TOKENS[:, [turn]], at(turn, 1), count)
        assert log_probs.shape == tokens.shape == (len(ROWS), min(count, VOCABULARY))
        order = np.argsort(-expected[:, turn], axis=1)[:, :count]
        assert np.array_equal(tokens, order)
        assert_close(log_probs, np.take_along_axis(expected[:, turn], order, axis=1))
        assert np.array_equal(cache.positions, at(0, turn + 1))


@pytest.mark.parametrize("advance", ["step", "logits"])
def test_a_hole_is_never_seen(model: Model, logits: np.ndarray, advance: str) -> None:
    """Wrong tokens go in with the right ones, each row others, and are made holes in both ways there are."""
    source, cache = model.encode(IDS, MASK), model.empty(len(ROWS))
    go: Callable[..., np.ndarray] = getattr(model, advance)
    expected = logits.argmax(-1) if advance == "step" else logits
    go(source, cache, TOKENS[:, :2], at(0, 2))
    wrong = (TOKENS[:, 2:6] + 7) % VOCABULARY
    if advance == "step":
        model.step(source, cache, wrong[:, :2], at(2, 2), keys=np.full((len(ROWS), 2), HOLE))
    else:
        model.logits(source, cache, wrong[:, :2], at(2, 2))
        cache.positions[:, 2:] = HOLE
    assert (cache.positions[:, 2:] == HOLE).all()
    kept = np.array([0, 1, 2, 1])  # right tokens in the next call, of each row
    some = np.where(np.arange(2) < kept[:, None], TOKENS[:, 2:4], wrong[:, 2:])
    go(source, cache, some, at(2, 2))
    cache.positions[:, 4:] = np.where(np.arange(2) < kept[:, None], at(2, 2), HOLE)
    for turn in range(3):
        now = 2 + kept + turn
        token = TOKENS[np.arange(len(ROWS)), now][:, None]
        made = go(source, cache, token, now[:, None])
        if advance == "step":
            assert np.array_equal(made[:, 0], expected[np.arange(len(ROWS)), now])
        else:
            assert_close(made[:, 0], expected[np.arange(len(ROWS)), now])


def test_what_is_a_hole_for_later_calls_is_seen_by_no_token_of_its_own_call(model: Model, logits: np.ndarray) -> None:
    source, cache = model.encode(IDS, MASK), model.empty(len(ROWS))
    tokens = TOKENS[:, :3].copy()
    tokens[:, 2] = 7
    best = model.step(source, cache, tokens, at(0, 3), keys=np.array([[0, 1, HOLE]] * len(ROWS)))
    assert np.array_equal(best[:, :2], logits.argmax(-1)[:, :2])
    assert np.array_equal(model.step(source, cache, TOKENS[:, [2]], at(2, 1))[:, 0], logits.argmax(-1)[:, 2])


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_rows_that_stand_together_share_a_source(model: Model, checkpoint: Path, copies: int) -> None:
    tokens = np.random.default_rng(copies).integers(2, VOCABULARY, (len(ROWS) * copies, 6))
    ids, mask = (np.repeat(array, copies, axis=0) for array in (IDS, MASK))
    expected = torch_logits(torch_model(checkpoint), ids, mask, tokens)
    source, cache = model.encode(IDS, MASK), model.empty(len(tokens))
    assert_close(model.logits(source, cache, tokens[:, :4], at(0, 4, len(tokens))), expected[:, :4])
    assert_close(model.logits(source, cache, tokens[:, 4:], at(4, 2, len(tokens))), expected[:, 4:])


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 2, 1, 0], [2], [0, 3], [1, 1, 1, 2, 0]], ids=str)
def test_chosen_rows_go_on_as_themselves(model: Model, logits: np.ndarray, rows: list[int]) -> None:
    source, cache = model.encode(IDS, MASK), model.empty(len(ROWS))
    model.logits(source, cache, TOKENS[:, :5], at(0, 5))
    chosen = np.array(rows)
    before = read(cache)
    source = model.select_source(source, chosen)
    model.select_cache(cache, chosen)
    assert source.rows == len(rows) == len(cache.positions)
    assert np.array_equal(source.values[0].numpy(), MASK[chosen])
    assert all(np.array_equal(now, then[chosen]) for now, then in zip(read(cache), before, strict=True))
    made = model.logits(source, cache, TOKENS[chosen, 5:], at(5, 4, len(rows)))
    assert_close(made, logits[chosen, 5:])


def test_rows_are_chosen_with_the_holes_they_have(model: Model, logits: np.ndarray) -> None:
    source, cache = model.encode(IDS, MASK), model.empty(len(ROWS))
    model.logits(source, cache, TOKENS[:, :5], at(0, 5))
    kept = np.array([1, 3, 5, 2])
    cache.positions[np.arange(5) >= kept[:, None]] = HOLE
    chosen = np.array([2, 0, 3])
    source = model.select_source(source, chosen)
    model.select_cache(cache, chosen)
    now = kept[chosen]
    made = model.logits(source, cache, TOKENS[chosen, now][:, None], now[:, None])
    assert_close(made[:, 0], logits[chosen, now])


def test_choosing_rows_leaves_the_source_as_it_was(model: Model, logits: np.ndarray) -> None:
    source = model.encode(IDS, MASK)
    model.select_source(source, np.array([1]))
    assert source.rows == len(ROWS)
    assert_close(model.logits(source, model.empty(len(ROWS)), TOKENS, at(0, TOKENS.shape[1])), logits)


@pytest.mark.parametrize("portions", [[30], [1] * 30, [7, 16, 7]], ids=str)
@pytest.mark.parametrize("least", [0, 11])
def test_greedy_tokens_in_any_portions_are_those_of_transformers(
    model: Model, checkpoint: Path, portions: list[int], least: int
) -> None:
    expected = torch_greedy(torch_model(checkpoint), IDS, MASK, 30, least)
    source, cache = model.encode(IDS, MASK), model.empty(len(ROWS))
    tokens, made = np.full((len(ROWS), 1), PAD), []
    for most in portions:
        begun = sum(part.shape[1] for part in made)
        part = model.greedy(source, cache, tokens, max(0, least - begun), most)
        made.append(part)
        tokens = part[:, -1:]
        assert np.array_equal(cache.positions, at(0, begun + part.shape[1]))
        assert {value.shape[2] for value in read(cache)} == {begun + part.shape[1]}
    whole = np.concatenate(made, axis=1)
    for row, answer in zip(whole.tolist(), expected.tolist(), strict=True):
        until = answer.index(END) + 1 if END in answer else 30
        assert row[:until] == answer[:until]  # a later portion does not know that the row has ended


def test_the_greedy_loop_stops_and_pads_as_rows_end(model: Model, checkpoint: Path) -> None:
    expected = torch_greedy(torch_model(checkpoint), IDS, MASK, 30)
    ends = [row.index(END) for row in expected.tolist() if END in row]
    assert len(set(ends)) > 1
    made = model.greedy(model.encode(IDS, MASK), model.empty(len(ROWS)), np.full((len(ROWS), 1), PAD), 0, 30)
    assert np.array_equal(made, expected)
    for i, row in enumerate(expected.tolist()):
        if END in row:
            ids, mask = ragged([ROWS[i]])
            alone = model.greedy(model.encode(ids, mask), model.empty(1), np.array([[PAD]]), 0, 30)
            assert alone.tolist() == [row[: row.index(END) + 1]]


def test_steps_may_follow_the_greedy_loop(model: Model, checkpoint: Path) -> None:
    source, cache = model.encode(IDS, MASK), model.empty(len(ROWS))
    made = model.greedy(source, cache, np.full((len(ROWS), 1), PAD), 30, 8)
    after = model.logits(source, cache, made[:, -1:], at(8, 1))
    forced = np.concatenate([shifted(made), made[:, -1:]], axis=1)
    assert_close(after, torch_logits(torch_model(checkpoint), IDS, MASK, forced)[:, -1:])


def test_what_was_made_is_not_changed_by_what_comes_after(model: Model) -> None:
    source, cache = model.encode(IDS, MASK), model.empty(len(ROWS))
    first = model.logits(source, cache, TOKENS[:, :1], at(0, 1))
    log_probs, _ = model.likeliest(source, cache, TOKENS[:, 1:2], at(1, 1), 5)
    copies = first.copy(), log_probs.copy()
    for turn in range(2, 9):
        model.logits(source, cache, TOKENS[:, [turn]], at(turn, 1))
    assert np.array_equal(first, copies[0])
    assert np.array_equal(log_probs, copies[1])


def test_arrays_that_are_not_contiguous_are_read_right(model: Model, logits: np.ndarray) -> None:
    source = model.encode(np.asfortranarray(IDS), np.repeat(MASK, 2, axis=1)[:, ::2])
    made = model.logits(source, model.empty(len(ROWS)), np.asfortranarray(TOKENS), np.asfortranarray(at(0, 9)))
    assert_close(made, logits)


def test_a_graph_is_loaded_when_it_is_first_used(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, int]] = []
    real = module.open_session

    def watched(path: Path, threads: int) -> object:
        opened.append((path.name, threads))
        return real(path, threads)

    monkeypatch.setattr(module, "open_session", watched)
    model = Model(published, (LAYERS, HEADS, D_KV), 1)
    assert opened == []

    def asked(call: Callable[[], object]) -> list[tuple[str, int]]:
        opened.clear()
        call()
        call()
        return opened

    source: Source = model.encode(IDS, MASK)
    start = np.full((len(ROWS), 1), PAD)
    assert opened == [("encoder.onnx", 1)]
    assert asked(lambda: model.greedy(source, model.empty(4), start, 0, 3)) == [("greedy.onnx", 1)]
    assert asked(lambda: model.step(source, model.empty(4), start, at(0, 1))) == [("decoder.onnx", 1)]
    assert asked(lambda: model.likeliest(source, model.empty(4), start, at(0, 1), 3)) == [("rank.onnx", 1)]
    assert asked(lambda: model.select_source(source, np.array([0]))) == [("select.onnx", 1)]
    assert asked(lambda: model.encode(IDS, MASK)) == []

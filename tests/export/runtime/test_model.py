"""The graphs behind arrays: steps, caches and choices of rows that leave no trace of what they should not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lora_ft.export.runtime.model as runtime_model
from lora_ft.core.errors import LoraFtError
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime import model as module
from lora_ft.export.runtime.model import Cache, Model, Source
from tests.export.oracle import END, PAD, ragged, shifted, torch_greedy, torch_logits, torch_model
from tests.tiny import CONFIG

LAYERS, HEADS, D_KV, VOCABULARY = (CONFIG[key] for key in ("num_decoder_layers", "num_heads", "d_kv", "vocab_size"))
SHAPE = LAYERS, HEADS, D_KV, VOCABULARY
CLOSE = 1e-4
ROWS = [[*range(5, 25), END], [END], [*range(7, 19), END], [28, 29, 30, END]]
IDS, MASK = ragged(ROWS)
TOKENS = np.random.default_rng(0).integers(2, VOCABULARY, (len(ROWS), 9))


@pytest.fixture
def model(published: Path) -> Model:
    return Model(published, SHAPE, 1)


@pytest.fixture(scope="module")
def logits(checkpoint: Path) -> np.ndarray:
    """transformers' of `TOKENS` [b, q, vocabulary]."""
    return torch_logits(torch_model(checkpoint), IDS, MASK, TOKENS)


def read(cache: Cache) -> list[np.ndarray]:
    """What it holds of each row, without the room it has for more."""
    return [value.numpy()[:, :, : cache.lengths.max()].copy() for value in cache.values]


def assert_close(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert np.abs(a - b).max() < CLOSE


def test_an_empty_cache_holds_nothing(model: Model) -> None:
    assert [value.shape for value in read(model.cache(3))] == [(3, HEADS, 0, D_KV)] * (2 * LAYERS)


def test_a_source_holds_its_mask_and_a_key_and_a_value_of_each_layer(model: Model) -> None:
    source = model.encode(IDS, MASK)
    assert source.rows == len(ROWS)
    mask, *cross = (value.numpy() for value in source.values)
    assert np.array_equal(mask, MASK)
    assert [value.shape for value in cross] == [(len(ROWS), HEADS, IDS.shape[1], D_KV)] * (2 * LAYERS)


PORTIONS = [9], [1] * 9, [4, *[1] * 5], [4, 5], [1, 7, 1], [3, 3, 3]


@pytest.mark.parametrize("portions", PORTIONS, ids=str)
def test_logits_of_tokens_in_any_portions_are_those_of_transformers(
    model: Model, logits: np.ndarray, portions: list[int]
) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    begin = 0
    for count in portions:
        made = model.logits(source, cache, TOKENS[:, begin : begin + count])
        assert_close(made, logits[:, begin : begin + count])
        begin += count
        assert {value.shape for value in read(cache)} == {(len(ROWS), HEADS, begin, D_KV)}


@pytest.mark.parametrize("portions", PORTIONS, ids=str)
def test_a_step_gives_the_likeliest_token_after_each(model: Model, logits: np.ndarray, portions: list[int]) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    begin = 0
    for count in portions:
        best = model.step(source, cache, TOKENS[:, begin : begin + count])
        assert best.dtype == np.int64
        assert np.array_equal(best, logits.argmax(-1)[:, begin : begin + count])
        begin += count


def test_a_step_that_is_early_is_not_the_last(model: Model, checkpoint: Path) -> None:
    greedy = torch_greedy(torch_model(checkpoint), IDS, MASK, 30)
    row = next(i for i, tokens in enumerate(greedy.tolist()) if END in tokens)
    source, forced = model.encode(*ragged([ROWS[row]])), shifted(greedy[[row], : greedy[row].tolist().index(END) + 1])
    free = model.step(source, model.cache(1), forced)
    held = model.step(source, model.cache(1), forced, early=True)
    scores = model.logits(source, model.cache(1), forced)
    scores[..., END] = -np.inf
    assert free[0, -1] == END
    assert np.array_equal(held, scores.argmax(-1))


@pytest.mark.parametrize("room", [1, 2, 3, 8])
def test_a_cache_grows_as_it_must(model: Model, logits: np.ndarray, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROOM", room)
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    for turn in range(9):
        assert_close(model.logits(source, cache, TOKENS[:, [turn]])[:, 0], logits[:, turn])
    assert cache.values[0].shape()[2] == {1: 16, 2: 16, 3: 12, 8: 16}[room]


def test_a_step_writes_where_the_cache_lies(model: Model) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    places = [value.data_ptr() for value in cache.values]
    for turn in range(9):
        model.step(source, cache, TOKENS[:, [turn]])
        assert all(value.numpy()[:, :, turn].any() for value in cache.values)
        assert not any(value.numpy()[:, :, turn + 1 :].any() for value in cache.values)
    assert [value.data_ptr() for value in cache.values] == places


def test_rows_may_take_back_unlike_numbers_of_tokens(model: Model, logits: np.ndarray) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    kept = np.array([1, 4, 2, 0])
    drafted = np.where(np.arange(4) < kept[:, None], TOKENS[:, 1:5], (TOKENS[:, 1:5] + 7) % VOCABULARY)
    model.step(source, cache, TOKENS[:, :1])
    best = model.step(source, cache, drafted)
    for i, count in enumerate(kept):
        assert np.array_equal(best[i, :count], logits[i, 1 : 1 + count].argmax(-1))
    cache.forget(4 - kept)
    assert cache.lengths.tolist() == [2, 5, 3, 1]
    for turn in range(3):
        now = 1 + kept + turn
        made = model.logits(source, cache, TOKENS[np.arange(len(ROWS)), now][:, None])
        assert_close(made[:, 0], logits[np.arange(len(ROWS)), now])


def test_a_row_alone_takes_back_tokens_without_a_trace(model: Model, logits: np.ndarray) -> None:
    source, cache = model.encode(*ragged([ROWS[0]])), model.cache(1)
    model.step(source, cache, TOKENS[:1, :3])
    model.step(source, cache, (TOKENS[:1, 3:8] + 7) % VOCABULARY)
    cache.forget(np.array([5]))
    assert cache.lengths.tolist() == [3]
    assert_close(model.logits(source, cache, TOKENS[:1, 3:6]), logits[:1, 3:6])


def test_the_likeliest_of_one_step_outlive_the_next(model: Model, logits: np.ndarray) -> None:
    """They are read from memory that every step fills anew."""
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    made = [model.likeliest(source, cache, TOKENS[:, at : at + 1], 3) for at in range(3)]
    for at, (_, tokens) in enumerate(made):
        assert np.array_equal(tokens[:, 0], logits.argmax(-1)[:, at])


@pytest.mark.parametrize("count", [1, 2, 10, VOCABULARY, VOCABULARY + 20])
def test_the_likeliest_tokens_come_with_their_log_probabilities(model: Model, logits: np.ndarray, count: int) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    expected = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    for turn in range(3):
        log_probs, tokens = model.likeliest(source, cache, TOKENS[:, [turn]], count)
        assert log_probs.shape == tokens.shape == (len(ROWS), min(count, VOCABULARY))
        order = np.argsort(-expected[:, turn], axis=1)[:, :count]
        assert np.array_equal(tokens, order)
        assert_close(log_probs, np.take_along_axis(expected[:, turn], order, axis=1))


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_rows_that_stand_together_share_a_source(model: Model, checkpoint: Path, copies: int) -> None:
    tokens = np.random.default_rng(copies).integers(2, VOCABULARY, (len(ROWS) * copies, 6))
    ids, mask = (np.repeat(array, copies, axis=0) for array in (IDS, MASK))
    expected = torch_logits(torch_model(checkpoint), ids, mask, tokens)
    source, cache = model.encode(IDS, MASK), model.cache(len(tokens))
    assert_close(model.logits(source, cache, tokens[:, :5]), expected[:, :5])
    assert_close(model.logits(source, cache, tokens[:, 5:]), expected[:, 5:])


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 2, 1, 0], [2], [0, 3], [1, 1, 1, 2, 0]], ids=str)
def test_chosen_rows_go_on_as_themselves(model: Model, logits: np.ndarray, rows: list[int]) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    model.logits(source, cache, TOKENS[:, :5])
    chosen = np.array(rows)
    before = read(cache)
    source = model.select_source(source, chosen)
    model.select_cache(cache, chosen)
    assert source.rows == len(rows)
    assert np.array_equal(source.values[0].numpy(), MASK[chosen])
    assert all(np.array_equal(now, then[chosen]) for now, then in zip(read(cache), before, strict=True))
    for turn in range(5, 9):
        assert_close(model.logits(source, cache, TOKENS[chosen, turn][:, None])[:, 0], logits[chosen, turn])


def test_rows_change_places_again_and_again(model: Model, logits: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a beam search's do: two memories take turns, also where their room grows and the source is another one."""
    monkeypatch.setattr(runtime_model, "_ROOM", 4)
    rng = np.random.default_rng(0)
    source, cache, order = model.encode(IDS, MASK), model.cache(len(ROWS)), np.arange(len(ROWS))
    model.logits(source, cache, TOKENS[:, :1])
    for turn in range(1, TOKENS.shape[1]):
        chosen = rng.integers(0, len(ROWS), len(ROWS))
        model.select_cache(cache, chosen)
        if turn % 3 == 0 or (order[chosen] != order).any():
            source = model.encode(IDS[order[chosen]], MASK[order[chosen]])
        order = order[chosen]
        made = model.logits(source, cache, TOKENS[order, turn][:, None])
        assert_close(made[:, 0], logits[order, turn])


def test_rows_are_chosen_with_the_lengths_they_have(model: Model, logits: np.ndarray) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    model.logits(source, cache, TOKENS[:, :5])
    kept = np.array([1, 3, 5, 2])
    cache.forget(5 - kept)
    chosen = np.array([2, 0, 3])
    source = model.select_source(source, chosen)
    model.select_cache(cache, chosen)
    now = kept[chosen]
    made = model.logits(source, cache, TOKENS[chosen, now][:, None])
    assert_close(made[:, 0], logits[chosen, now])


def test_choosing_rows_leaves_the_source_as_it_was(model: Model, logits: np.ndarray) -> None:
    source = model.encode(IDS, MASK)
    model.select_source(source, np.array([1]))
    assert source.rows == len(ROWS)
    assert_close(model.logits(source, model.cache(len(ROWS)), TOKENS), logits)


def test_what_was_made_is_not_changed_by_what_comes_after(model: Model) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    first = model.logits(source, cache, TOKENS[:, :1])
    log_probs, _ = model.likeliest(source, cache, TOKENS[:, 1:2], 5)
    best = model.step(source, cache, TOKENS[:, 2:3])
    copies = first.copy(), log_probs.copy(), best.copy()
    for turn in range(3, 9):
        model.logits(source, cache, TOKENS[:, [turn]])
        model.step(source, cache, TOKENS[:, [turn]])
    assert np.array_equal(first, copies[0])
    assert np.array_equal(log_probs, copies[1])
    assert np.array_equal(best, copies[2])


def test_arrays_that_are_not_contiguous_are_read_right(model: Model, logits: np.ndarray) -> None:
    source = model.encode(np.asfortranarray(IDS), np.repeat(MASK, 2, axis=1)[:, ::2])
    assert_close(model.logits(source, model.cache(len(ROWS)), np.asfortranarray(TOKENS)), logits)


def test_a_graph_is_loaded_when_it_is_first_used(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, int]] = []
    real = module.open_session

    def watched(path: Path, threads: int, provider: str) -> object:
        opened.append((path.name, threads))
        return real(path, threads, provider)

    monkeypatch.setattr(module, "open_session", watched)
    model = Model(published, SHAPE, 1)
    assert opened == []

    def asked(call: Callable[[], object]) -> list[tuple[str, int]]:
        opened.clear()
        call()
        call()
        return opened

    source: Source = model.encode(IDS, MASK)
    start = np.full((len(ROWS), 1), PAD)
    assert opened == [("encoder.onnx", 1)]
    assert asked(lambda: model.step(source, model.cache(4), start)) == [("step.onnx", 1)]
    cache = model.cache(4)
    model.step(source, cache, start)
    assert asked(lambda: model.step(source, cache, np.repeat(start, 2, axis=1))) == [("decoder.onnx", 1)]
    assert asked(lambda: model.likeliest(source, model.cache(4), start, 3)) == [("normal.onnx", 1), ("best.onnx", 1)]
    assert asked(lambda: model.select_source(source, np.array([0]))) == [("select.onnx", 1)]
    assert asked(lambda: model.encode(IDS, MASK)) == []


def test_a_bundle_of_links_into_one_folder_loads(published: Path, tmp_path: Path) -> None:
    """As the cache of the Hugging Face Hub has it."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(published.iterdir())):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs", str(number)))
    linked, plain = (Generator.load(folder, threads=1) for folder in (snapshot, published))
    assert linked.generate(["say: a"]) == plain.generate(["say: a"])


def test_weights_that_are_a_link_elsewhere_load_or_say_what_to_do(bundle: Path, tmp_path: Path) -> None:
    """As DVC links each file into a folder of its own; ONNX Runtime refuses that from 1.26 on."""
    (tmp_path / "cache").mkdir()
    (bundle / "weights.bin").rename(tmp_path / "cache" / "0123")
    (bundle / "weights.bin").symlink_to(tmp_path / "cache" / "0123")
    try:
        assert Generator.load(bundle, threads=1).generate(["say: a"])
    except LoraFtError as error:
        assert "weights.bin" in str(error) and "cp -rL" in str(error)

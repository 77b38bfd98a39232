"""The graphs as functions of arrays: steps, caches, and selections of rows without side effects."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_ft.export.runtime.model as runtime_model
from lora_ft.core.errors import LoraFtError
from lora_ft.export.runtime import Generator, graph_files
from lora_ft.export.runtime import model as module
from lora_ft.export.runtime.cache import Cache, Source
from lora_ft.export.runtime.model import Model
from lora_ft.export.runtime.source_parts import LANES
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
    return Model(graph_files.PublishedFiles(published), SHAPE, 1)


@pytest.fixture(scope="module")
def logits(checkpoint: Path) -> np.ndarray:
    """Return transformers' logits of `TOKENS` [b, q, vocabulary]."""
    return torch_logits(torch_model(checkpoint), IDS, MASK, TOKENS)


def read(cache: Cache) -> list[np.ndarray]:
    """Return the filled part of a cache for each row."""
    return [value.numpy()[:, :, : cache.lengths.max()].copy() for value in cache.values]


def assert_close(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert np.abs(a - b).max() < CLOSE


def test_an_empty_cache_has_no_tokens(model: Model) -> None:
    assert [value.shape for value in read(model.cache(3))] == [(3, HEADS, 0, D_KV)] * (2 * LAYERS)


def test_a_source_has_a_mask_and_keys_and_values_of_all_layers(model: Model) -> None:
    source = model.encode(IDS, MASK)
    assert source.rows == len(ROWS)
    mask, *cross = (value.numpy() for value in source.values)
    length = -(-IDS.shape[1] // LANES) * LANES
    assert np.array_equal(mask, np.pad(MASK, ((0, 0), (0, length - IDS.shape[1]))))
    assert [value.shape for value in cross] == [(len(ROWS), HEADS, length, D_KV)] * (2 * LAYERS)


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_source_has_equal_bits_however_many_are_encoded_at_once(
    model: Model, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.encode(IDS, MASK)
    calls = []
    run = Model._run
    monkeypatch.setattr(module, "rows_at_once", lambda heads, length: at_once)
    monkeypatch.setattr(Model, "_run", lambda self, *call: calls.append(call[1][0].shape()[0]) or run(self, *call))
    parts = model.encode(IDS, MASK)
    assert parts.rows == len(ROWS) and max(calls) == at_once and sum(calls) == len(ROWS)
    for first, second in zip(whole.values, parts.values, strict=True):
        assert np.array_equal(first.numpy(), second.numpy())


PORTIONS = [9], [1] * 9, [4, *[1] * 5], [4, 5], [1, 7, 1], [3, 3, 3]


@pytest.mark.parametrize("portions", PORTIONS, ids=str)
def test_logits_do_not_depend_on_the_size_of_calls(model: Model, logits: np.ndarray, portions: list[int]) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    begin = 0
    for count in portions:
        actual = model.logits(source, cache, TOKENS[:, begin : begin + count])
        assert_close(actual, logits[:, begin : begin + count])
        begin += count
        assert {value.shape for value in read(cache)} == {(len(ROWS), HEADS, begin, D_KV)}


@pytest.mark.parametrize("portions", PORTIONS, ids=str)
def test_a_step_returns_the_likeliest_next_tokens(model: Model, logits: np.ndarray, portions: list[int]) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    begin = 0
    for count in portions:
        best = model.step(source, cache, TOKENS[:, begin : begin + count])
        assert best.dtype == np.int64
        assert np.array_equal(best, logits.argmax(-1)[:, begin : begin + count])
        begin += count


def test_an_early_step_never_returns_the_end(model: Model, checkpoint: Path) -> None:
    greedy = torch_greedy(torch_model(checkpoint), IDS, MASK, 30)
    row = next(i for i, tokens in enumerate(greedy.tolist()) if END in tokens)
    source, forced = model.encode(*ragged([ROWS[row]])), shifted(greedy[[row], : greedy[row].tolist().index(END) + 1])
    free = model.step(source, model.cache(1), forced)
    token = model.step(source, model.cache(1), forced, forbid_eos=True)
    scores = model.logits(source, model.cache(1), forced)
    scores[..., END] = -np.inf
    assert free[0, -1] == END
    assert np.array_equal(token, scores.argmax(-1))


@pytest.mark.parametrize("room", [1, 2, 3, 8])
def test_a_cache_grows_on_demand(model: Model, logits: np.ndarray, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROOM", room)
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    for turn in range(9):
        assert_close(model.logits(source, cache, TOKENS[:, [turn]])[:, 0], logits[:, turn])
    assert cache.values[0].shape()[2] == {1: 16, 2: 16, 3: 12, 8: 16}[room]


def test_a_step_writes_into_the_memory_of_the_cache(model: Model) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    places = [value.data_ptr() for value in cache.values]
    for turn in range(9):
        model.step(source, cache, TOKENS[:, [turn]])
        assert all(value.numpy()[:, :, turn].any() for value in cache.values)
        assert not any(value.numpy()[:, :, turn + 1 :].any() for value in cache.values)
    assert [value.data_ptr() for value in cache.values] == places


def test_rows_may_remove_different_numbers_of_tokens(model: Model, logits: np.ndarray) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    counts = np.array([1, 4, 2, 0])
    drafted = np.where(np.arange(4) < counts[:, None], TOKENS[:, 1:5], (TOKENS[:, 1:5] + 7) % VOCABULARY)
    model.step(source, cache, TOKENS[:, :1])
    best = model.step(source, cache, drafted)
    for i, count in enumerate(counts):
        assert np.array_equal(best[i, :count], logits[i, 1 : 1 + count].argmax(-1))
    cache.forget(4 - counts)
    assert cache.lengths.tolist() == [2, 5, 3, 1]
    for turn in range(3):
        now = 1 + counts + turn
        actual = model.logits(source, cache, TOKENS[np.arange(len(ROWS)), now][:, None])
        assert_close(actual[:, 0], logits[np.arange(len(ROWS)), now])


def test_removed_tokens_of_a_single_row_have_no_effect(model: Model, logits: np.ndarray) -> None:
    source, cache = model.encode(*ragged([ROWS[0]])), model.cache(1)
    model.step(source, cache, TOKENS[:1, :3])
    model.step(source, cache, (TOKENS[:1, 3:8] + 7) % VOCABULARY)
    cache.forget(np.array([5]))
    assert cache.lengths.tolist() == [3]
    assert_close(model.logits(source, cache, TOKENS[:1, 3:6]), logits[:1, 3:6])


def test_ranked_tokens_survive_the_next_step(model: Model, logits: np.ndarray) -> None:
    """Results are copied from memory that every step overwrites."""
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    results = [model.likeliest(source, cache, TOKENS[:, at : at + 1], 3) for at in range(3)]
    for at, (_, tokens) in enumerate(results):
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
def test_consecutive_rows_share_a_source(model: Model, checkpoint: Path, copies: int) -> None:
    tokens = np.random.default_rng(copies).integers(2, VOCABULARY, (len(ROWS) * copies, 6))
    ids, mask = (np.repeat(array, copies, axis=0) for array in (IDS, MASK))
    expected = torch_logits(torch_model(checkpoint), ids, mask, tokens)
    source, cache = model.encode(IDS, MASK), model.cache(len(tokens))
    assert_close(model.logits(source, cache, tokens[:, :5]), expected[:, :5])
    assert_close(model.logits(source, cache, tokens[:, 5:]), expected[:, 5:])


@pytest.mark.parametrize("padding", [1, 3, 8, 30])
def test_a_row_has_equal_bits_in_any_batch(model: Model, padding: int) -> None:
    wide = np.pad(IDS, ((0, 0), (0, padding))), np.pad(MASK, ((0, 0), (0, padding)))
    together, cache = model.encode(*wide), model.cache(len(ROWS))
    logits = [model.logits(together, cache, TOKENS[:, [turn]]) for turn in range(4)]
    for number, row in enumerate(ROWS):
        source, single = model.encode(*ragged([row])), model.cache(1)
        for turn in range(4):
            alone = model.logits(source, single, TOKENS[[number], turn][:, None])
            assert np.array_equal(alone[0], logits[turn][number])


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 2, 1, 0], [2], [0, 3], [1, 1, 1, 2, 0]], ids=str)
def test_selected_rows_continue_unchanged(model: Model, logits: np.ndarray, rows: list[int]) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    model.logits(source, cache, TOKENS[:, :5])
    numbers = np.array(rows)
    before = read(cache)
    source = model.select_source(source, numbers)
    model.select_cache(cache, numbers)
    assert source.rows == len(rows)
    assert np.array_equal(source.values[0].numpy()[:, : MASK.shape[1]], MASK[numbers])
    assert all(np.array_equal(now, then[numbers]) for now, then in zip(read(cache), before, strict=True))
    for turn in range(5, 9):
        assert_close(model.logits(source, cache, TOKENS[numbers, turn][:, None])[:, 0], logits[numbers, turn])


def test_rows_are_reordered_repeatedly(model: Model, logits: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reorder like beam search: two buffers alternate, even if capacity grows or the source changes."""
    monkeypatch.setattr(runtime_model, "_ROOM", 4)
    rng = np.random.default_rng(0)
    source, cache, order = model.encode(IDS, MASK), model.cache(len(ROWS)), np.arange(len(ROWS))
    model.logits(source, cache, TOKENS[:, :1])
    for turn in range(1, TOKENS.shape[1]):
        numbers = rng.integers(0, len(ROWS), len(ROWS))
        model.select_cache(cache, numbers)
        if turn % 3 == 0 or (order[numbers] != order).any():
            source = model.encode(IDS[order[numbers]], MASK[order[numbers]])
        order = order[numbers]
        actual = model.logits(source, cache, TOKENS[order, turn][:, None])
        assert_close(actual[:, 0], logits[order, turn])


def test_selected_rows_keep_their_lengths(model: Model, logits: np.ndarray) -> None:
    source, cache = model.encode(IDS, MASK), model.cache(len(ROWS))
    model.logits(source, cache, TOKENS[:, :5])
    counts = np.array([1, 3, 5, 2])
    cache.forget(5 - counts)
    numbers = np.array([2, 0, 3])
    source = model.select_source(source, numbers)
    model.select_cache(cache, numbers)
    now = counts[numbers]
    actual = model.logits(source, cache, TOKENS[numbers, now][:, None])
    assert_close(actual[:, 0], logits[numbers, now])


def test_selecting_rows_does_not_change_the_source(model: Model, logits: np.ndarray) -> None:
    source = model.encode(IDS, MASK)
    model.select_source(source, np.array([1]))
    assert source.rows == len(ROWS)
    assert_close(model.logits(source, model.cache(len(ROWS)), TOKENS), logits)


def test_results_are_not_changed_by_later_calls(model: Model) -> None:
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


def test_non_contiguous_arrays_are_accepted(model: Model, logits: np.ndarray) -> None:
    source = model.encode(np.asfortranarray(IDS), np.repeat(MASK, 2, axis=1)[:, ::2])
    assert_close(model.logits(source, model.cache(len(ROWS)), np.asfortranarray(TOKENS)), logits)


def test_a_graph_is_loaded_on_first_use(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, int]] = []
    real = graph_files.open_session

    def watched(path: Path, threads: int, provider: str, **options: Any) -> object:
        opened.append((path.name, threads))
        return real(path, threads, provider, **options)

    monkeypatch.setattr(graph_files, "open_session", watched)
    model = Model(graph_files.PublishedFiles(published), SHAPE, 1)
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
    assert asked(lambda: model.step(source, cache, np.repeat(start, 2, axis=1))) == [("draft.onnx", 1)]
    shared = model.cache(8)
    model.step(source, shared, np.repeat(start, 2, axis=0))
    assert asked(lambda: model.step(source, shared, np.full((8, 2), PAD))) == [("decoder.onnx", 1)]
    assert asked(lambda: model.likeliest(source, model.cache(4), start, 3)) == [
        ("log_softmax.onnx", 1),
        ("top_k.onnx", 1),
    ]
    assert asked(lambda: model.select_source(source, np.array([0]))) == [("reorder_cache.onnx", 1)]
    assert asked(lambda: model.encode(IDS, MASK)) == []


def test_a_bundle_of_links_into_one_folder_loads(published: Path, tmp_path: Path) -> None:
    """The cache of the Hugging Face Hub links files into one folder."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(published.iterdir())):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs", str(number)))
    linked, plain = (Generator.load(folder, threads=1) for folder in (snapshot, published))
    assert linked.generate(["say: a"]) == plain.generate(["say: a"])


def test_weights_linked_to_another_folder_load_or_are_refused(bundle: Path, tmp_path: Path) -> None:
    """DVC links each file into a separate folder, which ONNX Runtime refuses from 1.26 on."""
    (tmp_path / "cache").mkdir()
    (bundle / "weights.bin").rename(tmp_path / "cache" / "0123")
    (bundle / "weights.bin").symlink_to(tmp_path / "cache" / "0123")
    try:
        assert Generator.load(bundle, threads=1).generate(["say: a"])
    except LoraFtError as error:
        assert "weights.bin" in str(error) and "cp -rL" in str(error)

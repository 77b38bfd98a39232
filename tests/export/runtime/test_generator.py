"""Generation from a bundle says what transformers' greedy search says, in any batch and any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import T5ForConditionalGeneration

from export.errors import UsageError
from export.runtime import Generator
from tests.export.oracle import (
    END,
    ORIGIN,
    PAD,
    TEXTS,
    make_bundle,
    ragged,
    redraw,
    shifted,
    torch_greedy,
    torch_logits,
    torch_model,
)
from tests.tiny import CONFIG, save_tiny_t5

LIMIT = 24
MANY = [*TEXTS, "", "a", *(f"say: {'word ' * (i * 7 % 11)}{i}" for i in range(13))]
Pair = tuple[Generator, T5ForConditionalGeneration]


@pytest.fixture(scope="module", params=[1, 2, 4, 9])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A bundle of a random checkpoint and transformers' model of it."""
    folder = tmp_path_factory.mktemp("pair")
    checkpoint = redraw(save_tiny_t5(folder / "checkpoint"), seed=request.param, end=2)
    make_bundle(checkpoint, folder / "bundle")
    return Generator.load(folder / "bundle", threads=1), torch_model(checkpoint)


def sources(seed: int, rows: int = 6, longest: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = [longest, *rng.integers(1, longest, rows - 1)]
    return ragged([[*rng.integers(3, CONFIG["vocab_size"], length - 1).tolist(), END] for length in lengths])


@pytest.mark.parametrize("least", [0, 5, LIMIT])
def test_tokens_are_those_of_transformers(pair: Pair, least: int) -> None:
    generator, model = pair
    for seed in range(3):
        ids, mask = sources(seed)
        made = generator.generate_ids(ids, mask, max_new_tokens=LIMIT, min_new_tokens=least)
        assert made.dtype == np.int64
        assert np.array_equal(made, torch_greedy(model, ids, mask, LIMIT, least))


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_the_limit_is_held_as_transformers_does(pair: Pair, limit: int) -> None:
    generator, model = pair
    ids, mask = sources(3)
    made = generator.generate_ids(ids, mask, max_new_tokens=limit)
    assert np.array_equal(made, torch_greedy(model, ids, mask, limit))
    assert made.shape[1] <= limit


def test_rows_end_with_the_end_and_then_padding(pair: Pair) -> None:
    generator, _ = pair
    ended = []
    for seed in range(4):
        made = generator.generate_ids(*sources(seed), max_new_tokens=LIMIT)
        for row in made:
            ends = np.flatnonzero(row == END)
            ended.append(len(ends) > 0)
            if len(ends):
                assert (row[ends[0] + 1 :] == PAD).all()
        assert made.shape[1] == LIMIT or (made == END).any(1).all()
    assert any(ended)


def test_no_row_ends_before_the_least(generator: Generator) -> None:
    ids, mask = sources(0)
    free = generator.generate_ids(ids, mask, max_new_tokens=LIMIT)
    held = generator.generate_ids(ids, mask, max_new_tokens=LIMIT, min_new_tokens=9)
    assert (free[:, :9] == END).any()
    assert not (held[:, :9] == END).any()


def test_the_search_stops_once_every_row_has_ended(generator: Generator) -> None:
    ids, mask = sources(0)
    free = generator.generate_ids(ids, mask, max_new_tokens=LIMIT)
    ends = [np.flatnonzero(row == END) for row in free]
    early = [i for i, end in enumerate(ends) if len(end) and end[0] < LIMIT - 1]
    assert early
    made = generator.generate_ids(ids[early], mask[early], max_new_tokens=LIMIT)
    assert made.shape[1] == max(ends[i][0] for i in early) + 1


def test_scores_are_transformers_logits_of_each_token(pair: Pair) -> None:
    generator, model = pair
    ids, mask = sources(5)
    tokens = generator.generate_ids(ids, mask, max_new_tokens=LIMIT)
    scores = generator.score(ids, mask, tokens)
    assert scores.shape == (*tokens.shape, CONFIG["vocab_size"])
    assert np.abs(scores - torch_logits(model, ids, mask, shifted(tokens))).max() < 1e-4
    before_the_end = np.cumsum(tokens == END, axis=1) - (tokens == END) == 0
    assert np.array_equal(scores.argmax(-1)[before_the_end], tokens[before_the_end])


@pytest.mark.parametrize("size", [1, 3, 8, 100])
@pytest.mark.parametrize("least", [0, 6])
def test_answers_do_not_depend_on_the_batch(generator: Generator, size: int, least: int) -> None:
    together = generator.generate_tokens(MANY, max_new_tokens=LIMIT, min_new_tokens=least, batch_size=size)
    alone = [generator.generate_tokens([text], max_new_tokens=LIMIT, min_new_tokens=least)[0] for text in MANY]
    assert len({len(tokens) for tokens in alone}) > 1
    assert len({tuple(tokens) for tokens in alone}) > len(MANY) // 2
    for tokens, expected in zip(together, alone, strict=True):
        assert np.array_equal(tokens, expected)


def test_answers_come_in_the_order_of_their_texts(generator: Generator) -> None:
    backwards = generator.generate(MANY[::-1], batch_size=4)
    assert backwards[::-1] == generator.generate(MANY, batch_size=4)


def test_answers_are_the_text_of_their_tokens(generator: Generator) -> None:
    tokens = generator.generate_tokens(MANY)
    assert generator.generate(MANY) == generator.tokenizer.decode(tokens)
    assert any("</s>" not in text and len(text) > 2 for text in generator.generate(MANY))
    for row in tokens:
        assert END not in row[:-1]
        assert row[-1] == END or len(row) == ORIGIN.max_new_tokens


def test_the_bundles_limit_holds_unless_told_otherwise(generator: Generator) -> None:
    assert generator.max_new_tokens == ORIGIN.max_new_tokens
    assert max(map(len, generator.generate_tokens(MANY))) == ORIGIN.max_new_tokens
    assert max(map(len, generator.generate_tokens(MANY, max_new_tokens=LIMIT))) > ORIGIN.max_new_tokens


def test_texts_are_cut_at_the_bundles_length(generator: Generator) -> None:
    assert generator.source_length == ORIGIN.source_length
    long = "abc " * 100
    ids, mask = ragged(generator.tokenizer.encode([long], generator.source_length))
    assert ids.shape == (1, ORIGIN.source_length) and ids[0, -1] == END
    expected = generator.generate_ids(ids, mask)[0]
    assert np.array_equal(generator.generate_tokens([long])[0], expected)


def test_no_texts_have_no_answers(generator: Generator) -> None:
    assert generator.generate([]) == []


def test_one_is_told_how_many_texts_are_finished(generator: Generator) -> None:
    told: list[int] = []
    generator.generate_tokens(MANY[:10], batch_size=4, done=told.append)
    assert told == [4, 8, 10]


@pytest.mark.parametrize(
    "limits",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": -1},
        {"min_new_tokens": -1},
        {"min_new_tokens": 5, "max_new_tokens": 4},
        {"min_new_tokens": ORIGIN.max_new_tokens + 1},
    ],
)
def test_limits_out_of_range_are_refused(generator: Generator, limits: dict[str, Any]) -> None:
    for call in (
        lambda: generator.generate_ids(*sources(0), **limits),
        lambda: generator.generate_tokens(["a"], **limits),
        lambda: generator.generate(["a"], **limits),
    ):
        with pytest.raises(UsageError, match=r"min_new_tokens .* and max_new_tokens") as caught:
            call()
        assert caught.value.exit_code == 2


def test_the_number_of_threads_changes_no_answer(published: Path, generator: Generator) -> None:
    assert Generator.load(published, threads=2).generate(MANY) == generator.generate(MANY)
    assert Generator.load(str(published)).generate(MANY) == generator.generate(MANY)


def test_a_loaded_bundle_says_what_it_is(generator: Generator) -> None:
    assert generator.prompt is not None and generator.prompt.template == "say: {text}"
    assert generator.manifest["adapter"] == "say"
    assert generator.end == END

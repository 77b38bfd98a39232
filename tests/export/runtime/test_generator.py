"""Bundles generate the same text as transformers, in any batch and order, streamed or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_ft.core.errors import UsageError
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime import generator as module
from lora_ft.export.runtime.decoding import TokenChunk
from lora_ft.export.runtime.generator import BATCH_SIZE
from lora_ft.export.runtime.manifest import describe_files
from lora_ft.models.byt5 import byte_tokenizer
from tests.export.oracle import END, ORIGIN, PAD, TEXTS, ragged, shifted, torch_greedy, torch_logits
from tests.export.runtime.cases import Pair, words
from tests.tiny import CONFIG

LIMIT = 24
MANY = [*TEXTS, "", "a", *(f"say: {'word ' * (i * 7 % 11)}{i}" for i in range(13))]
SAMPLED = {"do_sample": True, "top_k": 8, "seed": 0}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"prompt_lookup": False},
    "lookup": {"prompt_lookup": True},
    "edited": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "beams": {"num_beams": 3},
    "beams and edits": {"num_beams": 3, "no_repeat_ngram_size": 2, "length_penalty": 0.5},
}


def sources(seed: int, rows: int = 6, longest: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = [longest, *rng.integers(1, longest, rows - 1)]
    return ragged([[*rng.integers(3, CONFIG["vocab_size"], length - 1).tolist(), END] for length in lengths])


def tokens_of(generator: Generator, texts: list[str], **options: Any) -> list[list[int]]:
    return [answer.tokens.tolist() for answer in generator.answer(texts, **options)]


def reopened(bundle: Path, **defaults: Any) -> Generator:
    """Return a bundle with a changed generation_config.json and a matching manifest."""
    path = bundle / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | defaults))
    manifest = json.loads((bundle / "manifest.json").read_text()) | {"files": describe_files(bundle)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return Generator.load(bundle, threads=1)


@pytest.mark.parametrize("least", [0, 5, LIMIT])
@pytest.mark.parametrize("lookup", [True, False])
def test_tokens_equal_those_of_transformers(pair: Pair, least: int, lookup: bool) -> None:
    ids, mask = sources(least + lookup)
    tokens = pair.generator.generate_ids(ids, mask, max_new_tokens=LIMIT, min_new_tokens=least, prompt_lookup=lookup)
    assert tokens.dtype == np.int64
    assert np.array_equal(tokens, torch_greedy(pair.torch, ids, mask, LIMIT, least))


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_the_limit_is_that_of_transformers(pair: Pair, limit: int) -> None:
    ids, mask = sources(3)
    tokens = pair.generator.generate_ids(ids, mask, max_new_tokens=limit)
    assert np.array_equal(tokens, torch_greedy(pair.torch, ids, mask, limit))
    assert tokens.shape[1] <= limit


@pytest.mark.parametrize("mode", WAYS)
def test_rows_are_padded_after_their_end(unsure: Pair, mode: str) -> None:
    ended = []
    for seed in range(2):
        tokens = unsure.generator.generate_ids(*sources(seed), max_new_tokens=LIMIT, **WAYS[mode])
        for row in tokens:
            ends = np.flatnonzero(row == END)
            ended.append(len(ends) > 0)
            if len(ends):
                assert (row[ends[0] + 1 :] == PAD).all()
        assert tokens.shape[1] == LIMIT or (tokens == END).any(1).all()
    assert any(ended)


@pytest.mark.parametrize("mode", WAYS)
def test_rows_respect_the_minimum_length(unsure: Pair, mode: str) -> None:
    ids, mask = sources(0)
    free = unsure.generator.generate_ids(ids, mask, max_new_tokens=LIMIT, **WAYS[mode])
    limited = unsure.generator.generate_ids(ids, mask, max_new_tokens=LIMIT, min_new_tokens=9, **WAYS[mode])
    assert (free[:, :9] == END).any()
    assert not (limited[:, :9] == END).any()


def test_the_array_is_as_wide_as_the_longest_answer(generator: Generator) -> None:
    ids, mask = sources(0)
    free = generator.generate_ids(ids, mask, max_new_tokens=LIMIT)
    ends = [np.flatnonzero(row == END) for row in free]
    early = [i for i, end in enumerate(ends) if len(end) and end[0] < LIMIT - 1]
    assert early
    tokens = generator.generate_ids(ids[early], mask[early], max_new_tokens=LIMIT)
    assert tokens.shape[1] == max(ends[i][0] for i in early) + 1


@pytest.mark.parametrize("mode", WAYS)
def test_ids_and_texts_have_the_same_answers(unsure: Pair, mode: str) -> None:
    texts = words(1)
    actual = unsure.generator.generate_ids(*unsure.encode(texts), max_new_tokens=LIMIT, **WAYS[mode])
    answers = tokens_of(unsure.generator, texts, max_new_tokens=LIMIT, **WAYS[mode])
    assert actual.tolist() == [[*tokens, *[PAD] * (actual.shape[1] - len(tokens))] for tokens in answers]


def test_scores_equal_the_logits_of_transformers(pair: Pair) -> None:
    ids, mask = sources(5)
    tokens = pair.generator.generate_ids(ids, mask, max_new_tokens=LIMIT)
    scores = pair.generator.score(ids, mask, tokens)
    assert scores.shape == (*tokens.shape, CONFIG["vocab_size"])
    assert np.abs(scores - torch_logits(pair.torch, ids, mask, shifted(tokens))).max() < 1e-4
    before_the_end = np.cumsum(tokens == END, axis=1) - (tokens == END) == 0
    assert np.array_equal(scores.argmax(-1)[before_the_end], tokens[before_the_end])


@pytest.mark.parametrize("size", [1, 3, BATCH_SIZE, 100])
@pytest.mark.parametrize("least", [0, 6])
def test_answers_do_not_depend_on_the_batch(generator: Generator, size: int, least: int) -> None:
    together = tokens_of(generator, MANY, max_new_tokens=LIMIT, min_new_tokens=least, batch_size=size)
    alone = [tokens_of(generator, [text], max_new_tokens=LIMIT, min_new_tokens=least)[0] for text in MANY]
    assert len({len(tokens) for tokens in alone}) > 1
    assert len({tuple(tokens) for tokens in alone}) > len(MANY) // 2
    assert together == alone


@pytest.mark.parametrize("mode", WAYS)
def test_answers_keep_the_order_of_texts(generator: Generator, mode: str) -> None:
    backwards = generator.generate(MANY[::-1], batch_size=4, **WAYS[mode])
    assert backwards[::-1] == generator.generate(MANY, batch_size=4, **WAYS[mode])
    assert len(set(backwards)) > len(MANY) // 2


def test_answers_are_the_text_of_their_tokens(generator: Generator) -> None:
    tokens = tokens_of(generator, MANY)
    assert generator.generate(MANY) == generator.tokenizer.decode(tokens)
    assert any("</s>" not in text and len(text) > 2 for text in generator.generate(MANY))
    for row in tokens:
        assert END not in row[:-1]
        assert row[-1] == END or len(row) == ORIGIN.generation["max_new_tokens"]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_answers_to_a_text_are_consecutive(unsure: Pair, size: int) -> None:
    texts, beams = words(2, 7), {"num_beams": 3, "max_new_tokens": LIMIT}
    three = tokens_of(unsure.generator, texts, num_return_sequences=3, batch_size=size, **beams)
    assert three[::3] == tokens_of(unsure.generator, texts, **beams)
    sampled = tokens_of(unsure.generator, texts, num_return_sequences=3, batch_size=size, do_sample=True, top_k=1)
    assert sampled == [tokens for tokens in tokens_of(unsure.generator, texts) for _ in range(3)]
    assert len(unsure.generator.generate(texts, num_return_sequences=3, batch_size=size, **beams)) == 21
    actual = unsure.generator.generate_ids(*unsure.encode(texts), num_return_sequences=3, **beams)
    assert [row[: len(tokens)] for row, tokens in zip(actual.tolist(), three, strict=True)] == three


def test_scores_are_returned_on_request(generator: Generator) -> None:
    for options in ({}, SAMPLED, {"num_beams": 3}, {"repetition_penalty": 2.0}):
        plain, scored = generator.answer(MANY, **options), generator.answer(MANY, output_scores=True, **options)
        assert [a.tokens.tolist() for a in plain] == [a.tokens.tolist() for a in scored]
        assert all(answer.scores is None for answer in plain)
        for answer in scored:
            assert answer.scores is not None
            assert answer.scores.shape == ((1,) if "num_beams" in options else answer.tokens.shape)
            assert (answer.scores <= 0).all()


def test_the_limit_of_the_bundle_is_the_default(generator: Generator) -> None:
    assert generator.defaults["max_new_tokens"] == ORIGIN.generation["max_new_tokens"]
    assert max(map(len, tokens_of(generator, MANY))) == ORIGIN.generation["max_new_tokens"]
    assert max(map(len, tokens_of(generator, MANY, max_new_tokens=LIMIT))) > ORIGIN.generation["max_new_tokens"]
    assert tokens_of(generator, MANY, max_new_tokens=None) == tokens_of(generator, MANY)


@pytest.mark.parametrize("name", ["beams and edits", "edited"])
def test_options_of_the_bundle_are_defaults(bundle: Path, generator: Generator, name: str) -> None:
    plain, overridden = generator.generate(MANY), generator.generate(MANY, **WAYS[name])
    assert plain != overridden
    changed = reopened(bundle, **WAYS[name])
    assert changed.generate(MANY) == overridden
    assert changed.generate(MANY, **dict.fromkeys(WAYS[name])) == overridden
    back = {"num_beams": 1, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "length_penalty": 1.0}
    assert changed.generate(MANY, **back) == plain
    assert "".join(changed.stream(MANY[2])) == overridden[2]


def test_an_unknown_option_in_a_bundle_is_refused(bundle: Path) -> None:
    changed = reopened(bundle, max_wit=3)
    with pytest.raises(UsageError, match="unknown generation option max_wit"):
        changed.generate(["a"])


def test_texts_are_truncated_at_the_source_length(generator: Generator) -> None:
    assert generator.source_length == ORIGIN.source_length
    long = "abc " * 100
    ids, mask = ragged(generator.tokenizer.encode([long], generator.source_length))
    assert ids.shape == (1, ORIGIN.source_length) and ids[0, -1] == END
    expected = generator.generate_ids(ids, mask)[0].tolist()
    assert tokens_of(generator, [long]) == [expected]
    assert "".join(generator.stream(long)) == generator.tokenizer.decode([expected])[0]


@pytest.mark.parametrize("mode", WAYS)
def test_no_texts_have_no_answers(generator: Generator, mode: str) -> None:
    assert generator.generate([], **WAYS[mode]) == []
    assert generator.answer([], **WAYS[mode]) == []
    nothing = np.empty((0, 0), np.int64)
    assert generator.generate_ids(nothing, nothing, **WAYS[mode]).shape == (0, 0)


def test_progress_reports_the_number_of_finished_texts(generator: Generator) -> None:
    for copies in (1, 2):
        counts: list[int] = []
        options = {"num_beams": 2, "num_return_sequences": copies}
        generator.answer(MANY[:10], batch_size=4, on_progress=counts.append, **options)
        assert counts == [4, 8, 10]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, r"min_new_tokens .* more than max_new_tokens"),
        ({"min_new_tokens": ORIGIN.generation["max_new_tokens"] + 1}, r"min_new_tokens .* more than max_new_tokens"),
        ({"num_return_sequences": 2}, "num_return_sequences=2"),
        ({"temperature": 0.0}, "temperature"),
        ({"beams": 2}, "unknown generation option beams"),
    ],
)
def test_options_out_of_range_are_refused_before_any_work(
    generator: Generator, options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator.model, "step", None)
    for call in (
        lambda: generator.generate_ids(*sources(0), **options),
        lambda: generator.answer(["a"], **options),
        lambda: generator.generate(["a"], **options),
        lambda: next(generator.stream("a", **options)),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            call()
        assert caught.value.exit_code == 2


def test_a_batch_size_of_zero_is_refused(generator: Generator) -> None:
    with pytest.raises(UsageError, match="batch_size"):
        generator.generate(["a"], batch_size=0)


@pytest.mark.parametrize("mode", [*WAYS, "sampled", "scored"])
def test_a_stream_joins_to_the_answer(pair: Pair, mode: str) -> None:
    options = WAYS.get(mode, {"output_scores": True}) if mode != "sampled" else SAMPLED | {"seed": 3}
    lengths = set()
    for text in words(4, 4):
        bits = list(pair.generator.stream(text, max_new_tokens=LIMIT, **options))
        assert [("".join(bits))] == pair.generator.generate([text], max_new_tokens=LIMIT, **options)
        assert all(bits)
        lengths.add(len(bits))
    assert len(lengths) > 1


@pytest.mark.parametrize("mode", ["greedy", "lookup", "edited"])
def test_a_stream_with_a_minimum_length_joins_to_the_answer(pair: Pair, mode: str) -> None:
    limits, texts = {"max_new_tokens": LIMIT, "min_new_tokens": 9}, words(4, 6)
    limited = pair.generator.generate(texts, **limits, **WAYS[mode])
    assert limited != pair.generator.generate(texts, max_new_tokens=LIMIT, **WAYS[mode])
    assert ["".join(pair.generator.stream(text, **limits, **WAYS[mode])) for text in texts] == limited


@pytest.mark.parametrize("mode", ["greedy", "lookup", "edited", "sampled"])
def test_a_stream_yields_before_the_answer_is_complete(
    generator: Generator, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for name in ("step", "logits", "likeliest"):
        real = getattr(generator.model, name)
        monkeypatch.setattr(
            generator.model, name, lambda *args, real=real, **keys: calls.append(1) or real(*args, **keys)
        )
    stream = generator.stream("say: hello", max_new_tokens=LIMIT, **WAYS.get(mode, SAMPLED))
    assert calls == []
    next(stream)
    after_one = len(calls)
    assert 0 < after_one < 5
    remaining = list(stream)
    assert len(remaining) > 2
    assert len(calls) > after_one + 2


def test_a_stream_yields_the_first_of_several_answers(pair: Pair) -> None:
    for options in ({"num_beams": 4}, {"do_sample": True, "seed": 7}):
        options |= {"num_return_sequences": 3, "max_new_tokens": LIMIT}
        for text in words(5, 4):
            assert "".join(pair.generator.stream(text, **options)) == pair.generator.generate([text], **options)[0]


def test_a_stream_yields_an_incomplete_last_character(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """ByT5 generates bytes, so the limit may split a character, which decodes to a replacement character."""
    monkeypatch.setattr(generator, "settings", replace(generator.settings, tokenizer=byte_tokenizer()))
    tokens = np.array([byte + 3 for byte in "naïve ☕".encode()[:-1]])
    pieces = [TokenChunk(0, tokens[:4]), TokenChunk(0, tokens[4:])]
    monkeypatch.setattr(module, "decode", lambda *arguments, stream: iter(pieces))
    text = "".join(generator.stream("!", max_new_tokens=len(tokens)))  # within the tiny vocabulary
    assert text == generator.settings.tokenizer.decode([tokens])[0]
    assert text.startswith("naïve ") and len(text) > len("naïve ")


def test_an_abandoned_stream_has_no_effect(generator: Generator) -> None:
    expected = generator.generate(["say: hello"])
    first, second = generator.stream("say: hello"), generator.stream("say: hello")
    assert next(first) == next(second)
    first.close()
    assert generator.generate(["say: hello"]) == expected
    assert expected[0].endswith("".join(second))


def test_answers_do_not_depend_on_the_number_of_threads(published: Path, generator: Generator) -> None:
    assert Generator.load(published, threads=2).generate(MANY) == generator.generate(MANY)
    assert Generator.load(str(published)).generate(MANY) == generator.generate(MANY)


def test_a_loaded_bundle_describes_itself(generator: Generator, published: Path) -> None:
    assert generator.prompt is not None and generator.prompt.template == "say: {text}"
    assert generator.manifest["adapter"] == "say"
    assert generator.folder == published
    assert (generator.special.start, generator.special.end, generator.special.pad) == (PAD, END, PAD)
    assert not {name for name in generator.defaults if name.endswith("token_id")}


def test_equal_texts_are_sampled_independently(generator: Generator) -> None:
    options = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 6}
    assert len(set(generator.generate(["abc"] * 4, batch_size=1, **options))) > 1


def test_the_gpu_graph_generates_the_same_answers(pair: Pair, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA has no kernels for the graph for single tokens. The other graph generates the same answers."""
    model, texts = pair.generator.model, words(3, 6)
    bound, decoder = model._bound, model._session("decoder")
    for options in ({}, {"min_new_tokens": 9}, {"num_beams": 3}, {"do_sample": True, "seed": 4, "top_k": 7}):
        expected = pair.generator.generate(texts, max_new_tokens=LIMIT, **options)
        with monkeypatch.context() as patch:
            patch.setattr(model, "_bound", lambda session, graph, *arguments: bound(decoder, "decoder", *arguments))
            assert pair.generator.generate(texts, max_new_tokens=LIMIT, **options) == expected

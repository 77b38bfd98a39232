"""Tokens: encoded texts end with </s>, batches cover every row, and decoding drops special tokens."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lora_ft.core.codecs import codec_named
from lora_ft.core.errors import LoraFtError
from lora_ft.core.tokenizer import IGNORED, Tokenizer, by_length, pad
from tests.tiny import tiny_tokenizer

PAD, END, UNKNOWN = 0, 1, 2
KNOWN = st.text(string.ascii_letters + string.digits, min_size=1)
ROWS = st.lists(st.lists(st.integers(0, 70), max_size=12), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tiny_tokenizer().save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer(path)


@given(texts=st.lists(st.text(max_size=30), max_size=5), limit=st.one_of(st.none(), st.integers(1, 20)))
def test_truncated_text_is_a_prefix_and_an_end(tokenizer: Tokenizer, texts: list[str], limit: int | None) -> None:
    whole = tokenizer.encode(texts)
    cut = tokenizer.encode(texts, limit)
    assert len(cut) == len(whole) == len(texts)
    for ids, all_ids in zip(cut, whole, strict=True):
        assert ids[-1] == all_ids[-1] == END
        assert len(ids) == min(len(all_ids), limit or len(all_ids))
        assert ids[:-1] == all_ids[: len(ids) - 1]


@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_tokens_are_those_of_transformers(tokenizer: Tokenizer, path: Path, texts: list[str]) -> None:
    expected = PreTrainedTokenizerFast(tokenizer_file=str(path))(texts)["input_ids"]
    assert tokenizer.encode(texts) == expected


@given(word=KNOWN)
def test_a_word_is_read_back(tokenizer: Tokenizer, word: str) -> None:
    assert tokenizer.decode(tokenizer.encode([word])) == [word]


def test_no_texts_yield_no_rows(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([]) == []
    assert tokenizer.decode([]) == []


def test_texts_may_come_from_a_generator(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(word for word in ("a", "b")) == tokenizer.encode(["a", "b"])


def test_an_empty_text_is_its_end(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([""]) == [[END]]


def test_padding_and_truncation_of_the_file_are_disabled(tmp_path: Path, tokenizer: Tokenizer) -> None:
    padded = tiny_tokenizer()
    padded.enable_padding(length=32)
    padded.enable_truncation(4)
    padded.save(str(tmp_path / "tokenizer.json"))
    texts = ["a", "longer than that"]
    assert Tokenizer(tmp_path / "tokenizer.json").encode(texts) == tokenizer.encode(texts)


def test_a_tokenizer_knows_its_size_and_its_unknown(tokenizer: Tokenizer) -> None:
    assert tokenizer.size == 4 + 26 * 2 + 10 + 5
    assert tokenizer.unknown == UNKNOWN
    assert tokenizer.encode(["é"])[0][-2] == UNKNOWN


@given(word=KNOWN, noise=st.lists(st.sampled_from([PAD, END, IGNORED, -1]), max_size=6))
def test_decoding_drops_padding_and_special_tokens(tokenizer: Tokenizer, word: str, noise: list[int]) -> None:
    [ids] = tokenizer.encode([word])
    assert tokenizer.decode([[*noise, *ids, *noise]]) == [word]
    assert tokenizer.decode([np.array([*noise, *ids, *noise])]) == [word]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Return the text that each id adds, possibly ""."""
    detokenize = tokenizer.stream()
    return [detokenize(token) or "" for token in ids]


@given(ids=st.lists(st.integers(0, 70), max_size=20))
def test_a_stream_adds_up_to_the_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode([ids])[0]


def test_stream_yields_text_per_token(tokenizer: Tokenizer) -> None:
    [ids] = tokenizer.encode(["two words"])
    assert streamed(tokenizer, ids) == ["", *"two", " ", *"words", ""]


@pytest.fixture(scope="module")
def of_marks(path: Path) -> Tokenizer:
    """Return a tokenizer with pieces for the marks of codecs, behind the codec `text`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["vocab"] += [[piece, -1.0] for piece in "•′«»#;[>"]
    file = path.with_name("marks.json")
    file.write_text(json.dumps(content), encoding="utf-8")
    return Tokenizer(file, codec_named("text"))


@given(text=st.text(st.sampled_from("ab {}\n\t<😀•")))
def test_encoded_text_is_decoded_at_once_and_in_a_stream(of_marks: Tokenizer, text: str) -> None:
    (ids,) = of_marks.encode([text])
    assert of_marks.encode_targets([text]) == [ids]
    assert of_marks.decode([ids]) == ["".join(streamed(of_marks, ids))]
    assert of_marks.decode([ids]) == [text]


def test_characters_missing_from_the_vocabulary_are_counted(of_marks: Tokenizer) -> None:
    assert of_marks.lacking(["a漢{", "漢 b", "•"]) == {"漢": 2, "{": 1}


def test_streams_are_independent(tokenizer: Tokenizer) -> None:
    [[_, *left_ids, _], [_, *right_ids, _]] = tokenizer.encode(["abc", "xyz"])
    first, second = tokenizer.stream(), tokenizer.stream()
    bits = [(first(a), second(b)) for a, b in zip(left_ids, right_ids, strict=True)]
    assert ["".join(filter(None, some)) for some in zip(*bits, strict=True)] == ["abc", "xyz"]


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a tokenizer with one token per byte, in which most letters take several tokens."""
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [*special, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    model = tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>")
    library_tokenizer = tokenizers.Tokenizer(model)
    library_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library_tokenizer.decoder = tokenizers.decoders.ByteLevel()
    library_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", END)]
    )
    library_tokenizer.add_special_tokens(special)
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    library_tokenizer.save(str(path))
    return Tokenizer(path)


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=12))
def test_stream_of_bytes_yields_whole_characters(of_bytes: Tokenizer, text: str) -> None:
    [ids] = of_bytes.encode([text])
    bits = streamed(of_bytes, ids)
    assert len(bits) == len(text.encode()) + 1
    assert [bit for bit in bits if bit] == list(text)


def test_saved_tokenizer_is_equal(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    texts = ["a", "some words: 1, 2!"]
    assert Tokenizer(tmp_path / "tokenizer.json").encode(texts) == tokenizer.encode(texts)
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size() == tokenizer.size


@pytest.mark.parametrize("content", [None, "", "{", "{}", "[]"])
def test_file_that_is_not_a_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LoraFtError, match=r"tokenizer\.json cannot be read as a tokenizer") as caught:
        Tokenizer(path)
    assert caught.value.exit_code == 1


@given(rows=ROWS, value=st.sampled_from([PAD, IGNORED]), multiple=st.integers(1, 16))
def test_padding_extends_rows_to_the_next_multiple(rows: list[list[int]], value: int, multiple: int) -> None:
    out = pad(rows, value, multiple)
    longest = max(map(len, rows))
    assert out.dtype == np.int64
    assert out.shape[0] == len(rows)
    assert out.shape[1] % multiple == 0
    assert longest <= out.shape[1] < longest + multiple
    for array, row in zip(out, rows, strict=True):
        assert array.tolist() == row + [value] * (len(array) - len(row))


@given(rows=st.lists(st.lists(st.integers(), max_size=12), max_size=30), size=st.integers(1, 9))
def test_batches_have_each_row_once_longest_first(rows: list[list[int]], size: int) -> None:
    batches = list(by_length(rows, size))
    order = [i for batch in batches for i in batch]
    assert sorted(order) == list(range(len(rows)))
    lengths = [len(rows[i]) for i in order]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(0 < len(batch) <= size for batch in batches[-1:])


def test_rows_of_one_length_keep_their_order() -> None:
    assert list(by_length([[1], [2, 2], [3], [4, 4]], 3)) == [[1, 3, 0], [2]]


def test_spellings_are_the_bytes_of_a_text(tokenizer: Tokenizer, of_bytes: Tokenizer) -> None:
    ((first, *ids),) = tokenizer.encode(["two words"])
    assert tokenizer.spellings([first, *ids]) == [b" ", *(bytes([byte]) for byte in b"two words"), b"</s>"]
    (ids,) = of_bytes.encode(["a \u00e9\n\U0001f600"])
    assert b"".join(of_bytes.spellings(ids)) == "a \u00e9\n\U0001f600</s>".encode()
    assert of_bytes.spellings(ids)[2] == b"\xc3"

"""Conversion between text and token ids, with the tokenizer.json and codec that training, export and runtime share."""

from __future__ import annotations

import contextlib
import copy
import itertools
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from lora_ft.core.codecs import Codec
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.token_bytes import token_bytes

# Label positions with this value carry no loss. transformers also pads predictions with it (transformers#22634).
IGNORED = -100


class Tokenizer:
    """A T5's tokenizer.json behind a task's codec. Every encoded text ends with </s>, even if it was truncated.

    Attributes:
        codec: Codec that encodes texts before tokenization and decodes answers after it.
        unknown: Token for characters that the vocabulary lacks, or None.
        size: Size of the vocabulary, in tokens.
    """

    def __init__(self, path: Path, codec: Codec | None = None) -> None:
        self.codec = codec or Codec()
        self._path = path
        self._spellings: dict[int, bytes] = {}  # by token, since a server asks for the same ones again
        with self._guarded("cannot be read as a tokenizer"):
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self.unknown: int | None = self._tokenizer.token_to_id("<unk>")
            self.size: int = self._tokenizer.get_vocab_size()

    @contextlib.contextmanager
    def _guarded(self, problem: str = "failed on a text") -> Iterator[None]:
        """Raise LoraFtError instead of the library's errors: Exception, and panics of its Rust code.

        A panic is a BaseException, so `except Exception` would not catch it.
        """
        try:
            yield
        except BaseException as error:
            if isinstance(error, LoraFtError) or not (
                isinstance(error, Exception) or type(error).__name__ == "PanicException"
            ):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            raise LoraFtError(f"{self._path} {problem} ({reason})", "copy it again from the original base") from error

    @property
    def closing(self) -> int | None:
        """Token that ends every encoded text, or None if the tokenizer adds none."""
        with self._guarded():
            closing = self._tokenizer.encode("").ids
        return closing[-1] if closing else None

    @property
    def rows(self) -> int:
        """Number of embedding rows that all ids need; more than `size` if ids have gaps."""
        return 1 + max(self._tokenizer.get_vocab().values(), default=-1)

    def __eq__(self, other: object) -> bool:
        """Return True for the same vocabulary behind the same codec, so that adapters share what is derived from it."""
        return (
            isinstance(other, Tokenizer) and self._tokenizer is other._tokenizer and self.codec.name == other.codec.name
        )

    def __hash__(self) -> int:
        return hash((id(self._tokenizer), self.codec.name))

    def through(self, codec: Codec) -> Tokenizer:
        """Return a tokenizer with the same vocabulary behind another codec."""
        tokenizer = copy.copy(self)
        tokenizer.codec = codec
        return tokenizer

    def add(self, tokens: Sequence[str]) -> None:
        """Add words as tokens at the end of the vocabulary.

        Raises:
            UsageError: A word is a token already, or the codec would change it.
        """
        for token in tokens:
            if self.codec.encode_prompt(token) != token:
                raise UsageError(f"the codec {self.codec.name} changes the token {token!r}", "use letters and digits")
            if self._tokenizer.token_to_id(token) is not None:
                raise UsageError(f"{token!r} is already a token of the vocabulary", "choose another name for it")
            self._tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False)])
        self.size = self._tokenizer.get_vocab_size()
        self._spellings.clear()

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """Return the ids of tokens, without tokens that the vocabulary lacks."""
        indices = map(self._tokenizer.token_to_id, tokens)
        return [index for index in indices if index is not None]

    def encode(self, texts: Iterable[str], max_length: int | None = None) -> list[list[int]]:
        """Return the token ids of each prompt, at most `max_length` including </s>."""
        return self.encode_forms([self.codec.encode_prompt(text) for text in texts], max_length)

    def encode_targets(self, texts: Iterable[str], max_length: int | None = None) -> list[list[int]]:
        """Return the token ids of each target, at most `max_length` including </s>.

        Raises:
            UsageError: The codec does not support a text.
        """
        return self.encode_forms([self.codec.encode(text) for text in texts], max_length)

    def encode_forms(self, forms: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Return the token ids of each text that the codec has already encoded."""
        if max_length is not None and max_length < 1:
            raise UsageError(f"max_length is too small for </s> (got {max_length})", "give 1 or more")
        with self._guarded():
            rows = [encoding.ids for encoding in self._tokenizer.encode_batch([whole(form) for form in forms])]
        return rows if max_length is None else [_cut(ids, max_length) for ids in rows]

    def encode_sources(self, texts: Iterable[str], max_length: int) -> tuple[list[list[int]], list[bool]]:
        """Return the token ids of each prompt as in `encode`, and True for each prompt that was truncated."""
        rows = self.encode(texts)
        return [_cut(ids, max_length) for ids in rows], [len(ids) > max_length for ids in rows]

    def decode(self, rows: Iterable[Sequence[int] | np.ndarray]) -> list[str]:
        """Return the text of each row of ids.

        Special tokens and negative ids (padding of labels or predictions) are left out.
        """
        with self._guarded("failed on an answer"):
            forms = self._tokenizer.decode_batch([[int(i) for i in row if i >= 0] for row in rows])
        return [self.codec.decode(form) for form in forms]

    def texts(self, tokens: Iterable[int]) -> list[str]:
        """Return the text of each token, in the codec's form. A mark of a word's beginning is a space."""
        return [(self._tokenizer.id_to_token(int(token)) or "").replace("▁", " ") for token in tokens]

    def spellings(self, tokens: Sequence[int]) -> list[bytes]:
        """Return the bytes that each token adds to an answer, in the codec's form; of a special token, its name."""
        if new := [token for token in dict.fromkeys(tokens) if token not in self._spellings]:
            names, texts = self.pieces(new)
            forms = zip(names, token_bytes(names, texts), strict=True)
            self._spellings |= dict(zip(new, [form or name.encode() for name, form in forms], strict=True))
        return [self._spellings[token] for token in tokens]

    def pieces(self, tokens: Sequence[int] | None = None) -> tuple[list[str], list[str]]:
        """Return the name of each token, and the text in the codec's form that it adds to an answer.

        Special tokens add nothing. A token of part of a character adds U+FFFD.

        Args:
            tokens: Tokens. Default: the vocabulary.
        """
        tokens = range(self.rows) if tokens is None else tokens
        names = [self._tokenizer.id_to_token(token) or "" for token in tokens]
        with self._guarded():
            first = self._tokenizer.encode("a").ids[0]  # at the beginning of an answer, a space would be left out
            before = self._tokenizer.decode([first])
            texts = self._tokenizer.decode_batch([[first, token] for token in tokens])
        return names, [text[len(before) :] for text in texts]

    def lacking(self, texts: Iterable[str]) -> Counter[str]:
        """Count the characters in texts that the vocabulary lacks, regardless of the codec."""
        counts = Counter(itertools.chain.from_iterable(unicodedata.normalize("NFC", text) for text in texts))
        characters = list(counts)
        with self._guarded():
            encodings = self._tokenizer.encode_batch(characters, add_special_tokens=False)
        pairs = zip(characters, encodings, strict=True)
        return Counter({letter: counts[letter] for letter, encoding in pairs if self.unknown in encoding.ids})

    def stream(self) -> Callable[[int], str]:
        """Return a function that takes an answer's ids one by one and returns the text that each adds, possibly ""."""
        decoder = tokenizers.decoders.DecodeStream(skip_special_tokens=True)
        form = text = ""

        def step(token: int) -> str:
            nonlocal form, text
            with self._guarded("failed on an answer"):
                form += decoder.step(self._tokenizer, token) or ""
            before, text = text, self.codec.decode(self.codec.settled(form))
            return text[len(before) :]

        return step

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        self._tokenizer.save(str(path))


def _cut(ids: list[int], max_length: int) -> list[int]:
    """Truncate the tokens of a text to `max_length`, keeping the last one (</s>)."""
    return ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]


def whole(text: str) -> str:
    """Replace each lone surrogate (half a character) in a text with U+FFFD.

    JSON can encode a lone surrogate ("\\ud83d"), and tokenizers refuse a whole batch that has one.
    """
    try:
        text.isascii() or text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def pad(rows: Sequence[Sequence[int] | np.ndarray], value: int, multiple: int = 1) -> np.ndarray:
    """Pad rows with `value` to int64 [len(rows), longest], with the length rounded up to a multiple."""
    longest = max(map(len, rows))
    width = -(-longest // multiple) * multiple
    out = np.full((len(rows), width), value, np.int64)
    for array, row in zip(out, rows, strict=True):
        array[: len(row)] = row
    return out


def ragged(rows: Sequence[Sequence[int] | np.ndarray], fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sources of different lengths as a batch: ids padded with `fill`, and their mask, both int64 [b, s]."""
    ids = pad(rows, fill)
    return ids, (np.arange(ids.shape[1]) < [[len(row)] for row in rows]).astype(np.int64)


def by_length(rows: Sequence[Sequence[int] | np.ndarray], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of indices of rows of similar length, longest first, so that memory use peaks at the start."""
    if batch_size < 1:
        raise UsageError(f"batch_size is too small (got {batch_size})", "give 1 or more")
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def by_adapter(
    rows: Sequence[Sequence[int] | np.ndarray], names: Sequence[str | None], batch_size: int
) -> Iterator[list[int]]:
    """Yield batches like `by_length`, full batches of a single adapter first, since they cost the least."""
    remaining: list[int] = []
    for name in dict.fromkeys(names):
        indices = [i for i, owner in enumerate(names) if owner == name]
        for batch in by_length([rows[i] for i in indices], batch_size):
            if len(batch) == batch_size:
                yield [indices[i] for i in batch]
            else:
                remaining += [indices[i] for i in batch]
    for batch in by_length([rows[i] for i in remaining], batch_size):
        yield [remaining[i] for i in batch]

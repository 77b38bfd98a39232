"""Constrained decoding: which tokens may come next, so that an answer is valid under a JSON schema.

llguidance keeps, for each row, the state of a parser after the tokens so far, and computes the tokens that may follow
it: 0.1 ms a row for T5's 32,100 tokens. It knows a token by its bytes, which are the text that the token adds to the
answer, so the grammar needs no model and no tokenizer of its own.

Which row of a batch has which state is found by its tokens, as beams are reordered and rows leave at any step.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_ft.core.errors import UsageError, first_line
from lora_ft.core.json_grammar import JsonGrammar, token_text
from lora_ft.core.token_bytes import token_bytes
from lora_ft.core.tokenizer import Tokenizer

SCHEMA = "json_schema"
"""Name of the generation option that becomes a constraint."""


class Constraint:
    """The answers that are valid under a schema, as tokens.

    Args:
        schema: JSON schema.
        tokenizer: Tokenizer of the answers, with their codec.

    Raises:
        UsageError: The package llguidance is not installed, or the answers cannot be constrained to the schema.
    """

    def __init__(self, schema: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        grammar = JsonGrammar.of(schema, tokenizer.codec)
        self._vocabulary, characters = _vocabulary(tokenizer)
        self.end: int = self._vocabulary.eos_token
        if missing := sorted(grammar.characters - characters):
            remedy = "spell it differently" if tokenizer.codec.nests else "set codec: json"
            raise UsageError(f"json_schema needs the character {missing[0]!r}, which the vocabulary lacks", remedy)
        library = _library()
        self._lark = library.LLMatcher.grammar_from_lark(grammar.lark)
        error = library.LLMatcher.validate_grammar(self._lark, self._vocabulary)
        if not error:  # the first mask shows whether the library's limits suffice
            matcher = self.matcher()
            matcher.compute_bitmask()
            error = matcher.get_error()
        if error:
            raise UsageError(f"answers cannot be constrained to json_schema ({first_line(error)})", "simplify it")

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Return whether an answer, as tokens with </s>, is one of the constraint's."""
        matcher = self.matcher()
        return all(matcher.consume_token(int(token)) for token in tokens) and bool(matcher.is_stopped())

    def matcher(self) -> Any:
        """Return a parser at the beginning of an answer."""
        return _library().LLMatcher(self._vocabulary, self._lark, log_level=0)


class Rows:
    """The rows of one batch, with a parser for each of their answers so far."""

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint
        self._matchers: dict[tuple[int, ...], Any] = {}

    def allowed(self, tokens: np.ndarray, width: int) -> np.ndarray:
        """Return the tokens that may come next, bool [b, width]: </s> alone after an answer that has ended.

        Args:
            tokens: Tokens so far, with the start token, int64 [b, n].
            width: Size of the model's vocabulary.
        """
        answers = [tuple(row[1:]) for row in tokens.tolist()]
        children = Counter(answer[:-1] for answer in set(answers))
        matchers, masks = {}, {}
        for answer in dict.fromkeys(answers):
            parent = answer[:-1]
            children[parent] -= 1
            matchers[answer] = matcher = self._matcher(answer, last=not children[parent])
            masks[answer] = self._mask(matcher, width)
        self._matchers = matchers
        return np.stack([masks[answer] for answer in answers])

    def _matcher(self, answer: tuple[int, ...], *, last: bool) -> Any:
        """Return the parser after an answer so far, or None if it has ended or is not valid.

        Args:
            answer: Its tokens.
            last: No other row continues its beginning, so the parser of the beginning may be reused.
        """
        if answer in self._matchers:
            return self._matchers[answer]
        if answer and answer[:-1] in self._matchers:
            matcher, tokens = self._matchers[answer[:-1]], answer[-1:]
            if matcher is None:
                return None
            matcher = matcher if last else matcher.deep_copy()
        else:
            matcher, tokens = self._constraint.matcher(), answer
        if self._constraint.end in tokens or not all(matcher.consume_token(token) for token in tokens):
            return None
        return matcher

    def _mask(self, matcher: Any, width: int) -> np.ndarray:
        mask = np.zeros(width, bool)
        if matcher is not None:
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")[:width]
            mask[: len(bits)] = bits
        if not mask.any():
            mask[self._constraint.end] = True
        return mask


def constrained(options: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return generation options with a `Constraint` in place of their schema; a schema of False or None is none.

    Raises:
        UsageError: See `Constraint`.
    """
    others = {name: value for name, value in options.items() if name != SCHEMA}
    schema = options.get(SCHEMA)
    if schema is None or schema is False:
        return others
    if not isinstance(schema, Mapping):
        raise UsageError(f"json_schema is not a JSON schema (got {schema!r:.60})", "give an object")
    return others | {"constraint": _constraint(json.dumps(schema), tokenizer)}


@functools.lru_cache(maxsize=32)
def _constraint(schema: str, tokenizer: Tokenizer) -> Constraint:
    """Return the constraint of a schema, which requests of one task share, so that they can share a batch."""
    return Constraint(json.loads(schema), tokenizer)


@functools.lru_cache(maxsize=8)
def _vocabulary(tokenizer: Tokenizer) -> tuple[Any, frozenset[str]]:
    """Return a tokenizer's vocabulary for llguidance, and its characters."""
    end = tokenizer.closing
    if end is None:
        raise UsageError("the tokenizer ends no text with a token, so answers cannot be constrained", "use T5's own")
    library = _library()
    names, texts = tokenizer.pieces()
    forms = [token_text(text, tokenizer.codec) for text in texts]
    vocabulary = _Vocabulary(token_bytes(names, forms), end)
    return library.LLTokenizer(library.TokenizerWrapper(vocabulary)), frozenset("".join(forms))


class _Vocabulary:
    """The attributes that llguidance asks of a tokenizer. It never has to tokenize a text here.

    Attributes:
        tokens: Bytes of each token.
        eos_token_id: Token that ends an answer.
    """

    bos_token_id = None

    def __init__(self, tokens: list[bytes], end: int) -> None:
        self.tokens, self.eos_token_id = tokens, end
        self.special_token_ids = [token for token, content in enumerate(tokens) if not content]

    def __call__(self, text: bytes) -> list[int]:
        return []


def _library() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise UsageError(
            "json_schema needs the package llguidance, which is not installed", "pip install 'lora-ft[constrained]'"
        ) from error
    return llguidance

"""The calls of the model that a decoding strategy asks for, and the loop that answers them for one batch.

A strategy does not call the model. It is a generator that yields the call it needs next, is sent the result, and
yields the tokens of its answers in between. So one strategy serves two loops. `run` answers the calls of one batch at
once. The scheduler collects those of many requests and answers them with one step for all (`runtime.scheduler`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_ft.export.runtime.cache import Source
from lora_ft.export.runtime.decoding.draft_length import controller_of
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.io_binding import Edit
from lora_ft.export.runtime.model import Model


@dataclass(slots=True)
class Next:
    """Ask for the likeliest token after each of these tokens; the result is int64 [b, q].

    Attributes:
        tokens: Next tokens, int64 [b, q]. Tokens after the first of a row are drafts: the loop may answer the first one
            alone, with a result of [b, 1].
        forbid_eos: Never return </s>, since the answer is too short.
        shared: Set by the loop if other requests shared the call, so that its duration says nothing about this request.
    """

    tokens: np.ndarray
    forbid_eos: bool = False
    shared: bool = False


@dataclass(slots=True)
class Logits:
    """Ask for the logits after each of these tokens; the result is float32 [b, q, vocabulary], until the next call.

    Attributes:
        tokens: Next tokens, int64 [b, q].
        columns: Tokens whose logits are needed, int64 [n], ascending; the result then is [b, q, n].
    """

    tokens: np.ndarray
    columns: np.ndarray | None = None


@dataclass(slots=True)
class Likeliest:
    """Ask for the likeliest next tokens of each row; the result is (scores, tokens), each [b, count], descending.

    Attributes:
        tokens: Next tokens, int64 [b, 1].
        count: Number of tokens a row.
        log_softmax: Return log-probabilities; logits take less time.
        before: Edits the logits [b, vocabulary].
        after: Edits the log-probabilities [b, vocabulary].
    """

    tokens: np.ndarray
    count: int
    log_softmax: bool = True
    before: Edit | None = None
    after: Edit | None = None


@dataclass(slots=True)
class Keep:
    """Keep some rows, in this order; no result.

    Attributes:
        rows: Numbers of the rows, int64 [n]. A row may occur several times.
        sources: Numbers of the sources to keep, or None for all.
    """

    rows: np.ndarray
    sources: np.ndarray | None = None


@dataclass(slots=True)
class Forget:
    """Remove the last tokens of each row; no result.

    Attributes:
        counts: Number of tokens to remove, int64 [b].
    """

    counts: np.ndarray


@dataclass(slots=True)
class DraftLengths:
    """Ask for the model's controller of draft lengths; the result is a `DraftLengthController`."""


Call = Next | Logits | Likeliest | Keep | Forget | DraftLengths
Decoding = Generator[Call | TokenChunk, Any, None]


def run(model: Model, source: Source, copies: int, decoding: Decoding) -> Iterator[TokenChunk]:
    """Answer the calls of a batch that has the model to itself, and yield its tokens.

    Args:
        model: Graphs of the bundle.
        source: Encoded sources.
        copies: Rows of each source.
        decoding: The strategy at work.
    """
    cache = model.cache(source.rows * copies)
    result: Any = None
    while True:
        try:
            item = decoding.send(result)
        except StopIteration:
            return
        result = None
        match item:
            case TokenChunk():
                yield item
            case Next(tokens, forbid_eos):
                result = model.step(source, cache, tokens, forbid_eos=forbid_eos)
            case Logits(tokens, columns):
                result = model.logits(source, cache, tokens, columns=columns, copy=False)
            case Likeliest(tokens, count, log_softmax, before, after):
                result = model.likeliest(
                    source, cache, tokens, count, log_softmax=log_softmax, before=before, after=after
                )
            case Keep(rows, sources):
                if sources is not None:
                    source = model.select_source(source, sources)
                model.select_cache(cache, rows)
            case Forget(counts):
                cache.forget(counts)
            case DraftLengths():
                result = controller_of(model)

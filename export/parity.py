"""Compare a bundle with PyTorch: logits within a tolerance, greedy answers token by token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.errors import GateError
from lora_ft.core.files import read_json, write_json
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.tokenizer import pad, ragged
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.processors import log_softmax

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Reference:
    """PyTorch's answers to one batch of sources.

    Attributes:
        input_ids: Sources, int64 [b, s].
        attention_mask: Their mask, int64 [b, s].
        tokens: Greedy continuation, int64 [b, n], padded after </s>; n is at most max_new_tokens.
        logits: Logits at each of these tokens, given the tokens before it, float32 [b, n, vocabulary].
        max_new_tokens: Limit of the greedy search.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    tokens: np.ndarray
    logits: np.ndarray
    max_new_tokens: int


@dataclass(frozen=True)
class Report:
    """Result of comparing a bundle with PyTorch on a set of rows.

    Attributes:
        rows, tokens: Number of compared rows and tokens.
        identical_rows: Number of rows with equal greedy tokens.
        largest_difference: Largest difference of any logit.
        lookup_rows: Number of rows whose tokens are the same with prompt lookup.
        tolerance: Largest allowed difference, if no weight is rounded.
        divergence: Mean Kullback-Leibler divergence of next-token probabilities from PyTorch's, in nats.
    """

    rows: int
    tokens: int
    identical_rows: int
    largest_difference: float
    lookup_rows: int
    tolerance: float
    divergence: float = 0.0

    @property
    def passed(self) -> bool:
        return self.identical_rows == self.rows > 0 and self.largest_difference <= self.tolerance

    @property
    def lookup_is_lossless(self) -> bool:
        """True if all answers are the same with prompt lookup."""
        return self.lookup_rows == self.rows > 0

    def __str__(self) -> str:
        return (
            f"{self.identical_rows} of {self.rows} rows match PyTorch's text, "
            f"logits differ by at most {self.largest_difference:.2g}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the report as an entry of a manifest."""
        return asdict(self)


def compare(
    generator: Generator, references: Iterable[Reference], tolerance: float = TOLERANCE, adapter: str | None = None
) -> Report:
    """Compare a bundle with PyTorch, one reference at a time, since logits are large."""
    rows = tokens = identical = looked_up = 0
    largest = diverged = 0.0
    for reference in references:
        ids, mask = reference.input_ids, reference.attention_mask
        real = answered(reference.tokens, generator.special)
        logits = generator.score(ids, mask, reference.tokens, adapter=adapter)
        # max propagates a NaN, unlike fmax, and a NaN fails `Report.passed`
        largest = float(np.max([largest, np.abs(logits - reference.logits)[real].max(initial=0)]))
        diverged += _divergence(reference, logits, real)
        generated, drafted = (
            generator.generate_ids(
                ids, mask, adapter=adapter, max_new_tokens=reference.max_new_tokens, prompt_lookup=lookup
            )
            for lookup in (False, True)
        )
        rows, tokens = rows + len(ids), tokens + int(real.sum())
        identical += identical_rows(generated, reference.tokens, generator.special)
        looked_up += identical_rows(generated, drafted, generator.special)
    return Report(rows, tokens, identical, largest, looked_up, tolerance, diverged / max(1, tokens))


def divergence(generator: Generator, references: Iterable[Reference], adapter: str | None) -> float:
    """Return the divergence as in `compare`, without generating answers."""
    tokens, total = 0, 0.0
    for reference in references:
        logits = generator.score(reference.input_ids, reference.attention_mask, reference.tokens, adapter=adapter)
        real = answered(reference.tokens, generator.special)
        tokens += int(real.sum())
        total += _divergence(reference, logits, real)
    return total / max(1, tokens)


def _divergence(reference: Reference, logits: np.ndarray, real: np.ndarray) -> float:
    """Return the sum of the Kullback-Leibler divergences of all real tokens."""
    expected = log_softmax(reference.logits[real])
    return float((np.exp(expected) * (expected - log_softmax(logits[real]))).sum())


@dataclass(frozen=True)
class Probe:
    """PyTorch's answers to a few public sentences, small enough to be published with the bundle.

    Attributes:
        sources: Token ids of each sentence.
        tokens: PyTorch's greedy answers, up to </s>.
        log_probs: Log-probabilities of these tokens.
        max_new_tokens: Maximum length of an answer, in tokens.
    """

    sources: list[list[int]]
    tokens: list[list[int]]
    log_probs: list[list[float]]
    max_new_tokens: int

    @classmethod
    def of(cls, reference: Reference, special: SpecialTokens) -> Probe:
        """Return the probe of PyTorch's answers to one batch."""
        log_probs = np.take_along_axis(log_softmax(reference.logits), reference.tokens[..., None], axis=2)[..., 0]
        lengths = [len(special.trim(row)) for row in reference.tokens]
        sources = [
            row[mask > 0].tolist() for row, mask in zip(reference.input_ids, reference.attention_mask, strict=True)
        ]
        return cls(
            sources,
            [row[:length].tolist() for row, length in zip(reference.tokens, lengths, strict=True)],
            [[round(float(x), 6) for x in row[:length]] for row, length in zip(log_probs, lengths, strict=True)],
            reference.max_new_tokens,
        )

    @classmethod
    def read(cls, path: Path) -> Probe:
        """Read the probe of a bundle."""
        content: Mapping[str, Any] = read_json(path)
        return cls(**content)

    def write(self, path: Path) -> None:
        """Write the probe into a bundle."""
        write_json(path, asdict(self))

    def check(self, generator: Generator, adapter: str | None = None) -> Report:
        """Compare a bundle with the probe. Differences are those of log-probabilities."""
        (ids, mask), tokens = (
            ragged(self.sources, generator.special.pad),
            pad(self.tokens, generator.special.pad),
        )
        log_probs = log_softmax(generator.score(ids, mask, tokens, adapter=adapter))
        scored = np.take_along_axis(log_probs, tokens[..., None], axis=2)[..., 0]
        largest = max(
            float(np.abs(row[: len(expected)] - expected).max())
            for row, expected in zip(scored, self.log_probs, strict=True)
        )
        generated, drafted = (
            generator.generate_ids(ids, mask, adapter=adapter, max_new_tokens=self.max_new_tokens, prompt_lookup=lookup)
            for lookup in (False, True)
        )
        count = sum(map(len, self.tokens))
        identical, drafted_alike = (
            identical_rows(generated, answers, generator.special) for answers in (tokens, drafted)
        )
        return Report(len(ids), count, identical, largest, drafted_alike, TOLERANCE)


def require(report: Report) -> None:
    """Raise GateError unless the report passed."""
    if not report.passed:
        raise GateError(
            f"the ONNX graphs differ from PyTorch: {report} (allowed: {report.tolerance:g}); nothing was written",
            "please report this with the output of `lora-ft doctor`",
        )


def identical_rows(a: np.ndarray, b: np.ndarray, special: SpecialTokens) -> int:
    """Return the number of rows with the same tokens, apart from padding."""
    width = max(a.shape[1], b.shape[1])
    a, b = (np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])), constant_values=special.pad) for tokens in (a, b))
    a, b = (np.where(answered(tokens, special), tokens, special.pad) for tokens in (a, b))
    return int((a == b).all(axis=1).sum())


def answered(tokens: np.ndarray, special: SpecialTokens) -> np.ndarray:
    """Return a mask, bool [b, n], of the tokens of an answer: neither after its end nor padding."""
    ended = special.ended(tokens)
    behind = np.cumsum(ended, axis=1) - ended > 0
    padding = np.cumprod(((tokens == special.pad) & ~ended)[:, ::-1], axis=1)[:, ::-1].astype(bool)
    return ~(behind | padding)

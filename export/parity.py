"""Whether a bundle says what PyTorch says: logits within a tolerance, greedy text token for token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from export.errors import LoraFtError
from export.runtime.generator import Generator
from export.runtime.text import PAD

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Reference:
    """What PyTorch makes of one batch of sources.

    Attributes:
        input_ids: [b, s] int64.
        attention_mask: [b, s] int64.
        tokens: [b, n] int64, the greedy continuation, padded after </s>; n is at most max_new_tokens.
        logits: [b, n, vocabulary] float32, of each of those tokens given the ones before it.
        max_new_tokens: the limit of the greedy search.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    tokens: np.ndarray
    logits: np.ndarray
    max_new_tokens: int


@dataclass(frozen=True)
class Report:
    """How a bundle compares with PyTorch over some rows.

    Attributes:
        rows, tokens: how much was compared.
        identical_rows: rows whose greedy tokens are all the same.
        largest_difference: of any logit of any token.
        tolerance: what that difference may be at most.
    """

    rows: int
    tokens: int
    identical_rows: int
    largest_difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.identical_rows == self.rows > 0 and self.largest_difference <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.identical_rows} of {self.rows} rows give PyTorch's text, "
            f"logits differ by at most {self.largest_difference:.2g}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


def compare(generator: Generator, references: Iterable[Reference], tolerance: float = TOLERANCE) -> Report:
    """Put each batch through the bundle and compare. References are taken one at a time, as logits are large."""
    rows = tokens = identical = 0
    largest = 0.0
    for reference in references:
        ids, mask = reference.input_ids, reference.attention_mask
        real = reference.tokens != PAD
        logits = generator.score(ids, mask, reference.tokens)
        # fmax would pass over a NaN; max does not, and a NaN fails the test below
        largest = float(np.max([largest, np.abs(logits - reference.logits)[real].max()]))
        made = generator.generate_ids(ids, mask, max_new_tokens=reference.max_new_tokens)
        width = max(made.shape[1], reference.tokens.shape[1])
        same = _widen(made, width) == _widen(reference.tokens, width)
        rows, tokens, identical = rows + len(ids), tokens + int(real.sum()), identical + int(same.all(axis=1).sum())
    return Report(rows, tokens, identical, largest, tolerance)


def require(report: Report) -> None:
    """Raise LoraFtError unless the report passed."""
    if not report.passed:
        raise LoraFtError(
            f"the ONNX graphs differ from PyTorch: {report} (allowed: {report.tolerance:g}); nothing was written",
            "please report this with the output of `lora-ft doctor`",
        )


def _widen(tokens: np.ndarray, width: int) -> np.ndarray:
    return np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])), constant_values=PAD)

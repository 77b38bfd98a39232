"""Measure size, speed and score of each precision on this machine, and choose the one to publish."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lora_ft.core.progress import Progress
from lora_ft.deployment.quality_gate import QualityGate
from lora_ft.evaluation.metrics import Estimate, Scored
from lora_ft.export.bundle.publish import Candidate

_SOURCE_TOKENS, _NEW_TOKENS, _ROUNDS = 128, 32, 5  # per timing
_BATCH_SIZES = (1, 8)


@dataclass(frozen=True)
class Tradeoff:
    """Size, speed and score of one precision.

    Attributes:
        precision: Name of the precision.
        megabytes: Size of the bundle.
        milliseconds: Time per generated token of the whole batch, by batch size.
        score: Score of the answers, 0 to 100.
        difference: Change from fp32 on the same rows, with the paired interval.
        identical: Share of answers that are identical to fp32's.
        holds: Whether the change passes the quality gate.
    """

    precision: str
    megabytes: float
    milliseconds: dict[int, float]
    score: Estimate
    difference: Estimate
    identical: float
    holds: bool


@dataclass
class PrecisionSelector:
    """The choice of a precision by answers to rows of a task, called by `write_bundle` as a `Choose`.

    Attributes:
        gate: Rows to answer, and the allowed loss. With `force`, the last candidate is selected.
        progress: Receives stages and steps.
        table: One entry per candidate, available after the call.
    """

    gate: QualityGate
    progress: Progress
    table: Sequence[Tradeoff] = ()

    def __call__(self, candidates: Sequence[Candidate]) -> tuple[Candidate, Mapping[str, Any]]:
        """Return the fastest candidate that passes the quality gate, and the record of the choice.

        Raises:
            GateError: A single precision was requested, and it loses too much quality.
        """
        answers = [self._answers(candidate) for candidate in candidates]
        scores = [self.gate.score(texts) for texts in answers]
        self.progress.stage("timing precisions", _ROUNDS * len(_BATCH_SIZES))
        speeds = milliseconds_per_token(candidates, self.progress)
        self.table = [
            self._row(candidate, speed, texts, rows, answers[0], scores[0])
            for candidate, speed, texts, rows in zip(candidates, speeds, answers, scores, strict=True)
        ]
        rows = list(zip(candidates, self.table, strict=True))
        if self.gate.force or len(candidates) == 2:  # fp32 and the requested precision
            selected, row = rows[-1]
            remedy = "choose another --precision, raise --max-rouge-drop, or add --force"
            self.gate.require(row.difference, f"precision {row.precision}", "fp32", remedy)
        else:
            passing = [pair for pair in rows if pair[1].holds]
            selected, row = min(passing, key=lambda pair: statistics.geometric_mean(pair[1].milliseconds.values()))
        return selected, {"gate": self.gate.record(row.holds), "tradeoff": [asdict(entry) for entry in self.table]}

    def _answers(self, candidate: Candidate) -> list[str]:
        generator, prompts = candidate.generator, self.gate.prompts
        self.progress.stage(f"scoring {candidate.precision}", len(prompts))
        answers = generator.answer(prompts, on_progress=self.progress.advance, prompt_lookup=False, do_sample=False)
        return generator.tokenizer.decode([answer.tokens for answer in answers])

    def _row(
        self,
        candidate: Candidate,
        speed: dict[int, float],
        answers: Sequence[str],
        scores: Scored,
        exact_answers: Sequence[str],
        exact_scores: Scored,
    ) -> Tradeoff:
        change = self.gate.difference(scores, exact_scores)
        identical = [answer == exact for answer, exact in zip(answers, exact_answers, strict=True)]
        return Tradeoff(
            precision=str(candidate.precision),
            megabytes=candidate.bytes / 1e6,
            milliseconds=speed,
            score=self.gate.estimate(scores),
            difference=change,
            identical=float(np.mean(identical)),
            holds=self.gate.passes(change),
        )


def milliseconds_per_token(candidates: Sequence[Candidate], progress: Progress) -> list[dict[int, float]]:
    """Return the median time per token of each candidate by batch size.

    Candidates alternate, since clock speeds drift.
    """
    medians: list[dict[int, float]] = [{} for _ in candidates]
    finished = 0
    for batch_size in _BATCH_SIZES:
        vocabulary = min(candidate.generator.tokenizer.size for candidate in candidates)
        ids = np.random.default_rng(0).integers(3, vocabulary, (batch_size, _SOURCE_TOKENS))
        seconds: list[list[float]] = [[] for _ in candidates]
        for turn in range(_ROUNDS + 1):
            for candidate, times in zip(candidates, seconds, strict=True):
                start = time.perf_counter()
                candidate.generator.generate_ids(
                    ids, np.ones_like(ids), max_new_tokens=_NEW_TOKENS, min_new_tokens=_NEW_TOKENS, prompt_lookup=False
                )
                if turn:  # the first turn allocates memory
                    times.append(time.perf_counter() - start)
            if turn:
                finished += 1
                progress.advance(finished)
        for entry, times in zip(medians, seconds, strict=True):
            entry[batch_size] = 1000 * statistics.median(times) / _NEW_TOKENS
    return medians

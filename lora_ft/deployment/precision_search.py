"""What each precision costs and gives on this machine, and which one is published."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lora_ft.core.errors import GateError
from lora_ft.core.progress import Progress
from lora_ft.data.splits import Example
from lora_ft.evaluation.metrics import Estimate, Scored, difference, score
from lora_ft.export.bundle.publish import Candidate
from lora_ft.tasks.schema import Task

_SOURCE, _NEW, _ROUNDS = 128, 32, 5  # tokens in, tokens out, timings of each


@dataclass(frozen=True)
class Tradeoff:
    """One precision.

    Attributes:
        precision: its name.
        megabytes: of the bundle.
        milliseconds: for a token, by batch size, over all rows.
        score: of its answers on the rows, 0 to 100.
        difference: from fp32, row by row, with the paired interval.
        identical: share of answers that are fp32's.
        holds: whether the difference is small enough.
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
    """Chooses among candidates by their answers to a task's rows: a `Choose` for `write_bundle`.

    Attributes:
        task, examples: what is asked.
        metric: of the task's `evaluate.metric`.
        max_drop: what the score may fall by, in points.
        force: publish the last candidate whatever it scores.
        progress: told what happens.
        table: one entry for each candidate, filled in when it has judged.
    """

    task: Task
    examples: Sequence[Example]
    max_drop: float
    force: bool
    progress: Progress
    table: Sequence[Tradeoff] = ()

    def __call__(self, candidates: Sequence[Candidate]) -> tuple[Candidate, Mapping[str, Any]]:
        """The fastest candidate whose quality holds.

        Raises:
            LoraFtError: one precision was asked for, and its quality does not hold.
        """
        answers = [self._answers(candidate) for candidate in candidates]
        scores = [self._scores(texts) for texts in answers]
        self.progress.stage("timing precisions", _ROUNDS * 2)
        speeds = milliseconds_per_token(candidates, self.progress)
        self.table = [
            self._row(candidate, speed, texts, rows, answers[0], scores[0])
            for candidate, speed, texts, rows in zip(candidates, speeds, answers, scores, strict=True)
        ]
        rows = list(zip(candidates, self.table, strict=True))
        if self.force or len(candidates) == 2:
            chosen, row = rows[-1]
            if not (self.force or row.holds):
                raise GateError(
                    f"{row.precision} costs too much: {self.task.evaluate.metric} changes by {row.difference} against "
                    f"fp32 on {len(self.examples)} rows (allowed: -{self.max_drop:g}); nothing was written",
                    "another --precision, a larger --max-rouge-drop, or --force",
                )
        else:
            holding = [pair for pair in rows if pair[1].holds]
            chosen, row = min(holding, key=lambda pair: statistics.geometric_mean(pair[1].milliseconds.values()))
        return chosen, {
            "gate": {
                "metric": self.task.evaluate.metric,
                "rows": len(self.examples),
                "max_drop": self.max_drop,
                "passed": row.holds,
                "forced": self.force and not row.holds,
            },
            "tradeoff": [asdict(entry) for entry in self.table],
        }

    def _answers(self, candidate: Candidate) -> list[str]:
        self.progress.stage(f"scoring {candidate.precision}", len(self.examples))
        prompts = [example.prompt for example in self.examples]
        made = candidate.generator.answer(prompts, done=self.progress.advance, prompt_lookup=False, do_sample=False)
        return candidate.generator.tokenizer.decode([answer.tokens for answer in made])

    def _scores(self, answers: Sequence[str]) -> Scored:
        settings = self.task.evaluate
        return score(settings.metric, answers, [example.references for example in self.examples], settings)

    def _row(
        self,
        candidate: Candidate,
        speed: dict[int, float],
        answers: Sequence[str],
        scores: Scored,
        exact_answers: Sequence[str],
        exact_scores: Scored,
    ) -> Tradeoff:
        settings = self.task.evaluate
        seeds = {"seed": settings.seed, "resamples": settings.bootstrap}
        lost = difference(scores, exact_scores, **seeds)
        same = [a == b for a, b in zip(answers, exact_answers, strict=True)]
        return Tradeoff(
            precision=str(candidate.precision),
            megabytes=candidate.bytes / 1e6,
            milliseconds=speed,
            score=scores.estimate(**seeds),
            difference=lost,
            identical=float(np.mean(same)),
            holds=holds(lost, self.max_drop),
        )


def holds(difference: Estimate, max_drop: float) -> bool:
    """Whether a paired difference is no real loss: small, and either not shown to be a loss or shown to be small."""
    small = difference.mean >= -max_drop
    return small and (difference.high >= 0 or difference.low >= -max_drop)


def milliseconds_per_token(candidates: Sequence[Candidate], progress: Progress) -> list[dict[int, float]]:
    """Median of each candidate by batch size, over all rows; they take turns, as the machine's speed drifts."""
    found: list[dict[int, float]] = [{} for _ in candidates]
    finished = 0
    for batch in (1, 8):
        known = min(candidate.generator.tokenizer.size for candidate in candidates)
        ids = np.random.default_rng(0).integers(3, known, (batch, _SOURCE))
        seconds: list[list[float]] = [[] for _ in candidates]
        for turn in range(_ROUNDS + 1):
            for candidate, times in zip(candidates, seconds, strict=True):
                began = time.perf_counter()
                candidate.generator.generate_ids(
                    ids, np.ones_like(ids), max_new_tokens=_NEW, min_new_tokens=_NEW, prompt_lookup=False
                )
                if turn:  # the first one allocates
                    times.append(time.perf_counter() - began)
            if turn:
                finished += 1
                progress.advance(finished)
        for entry, times in zip(found, seconds, strict=True):
            entry[batch] = 1000 * statistics.median(times) / _NEW
    return found

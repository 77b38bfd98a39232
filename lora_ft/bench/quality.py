"""What engines answer to real rows at the length that comes of itself: the task's score beside the speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lora_ft.bench import report
from lora_ft.bench.runner import TimedEngine, reference, share_alike
from lora_ft.core.errors import LoraFtError
from lora_ft.core.tokenizer import Tokenizer, by_length
from lora_ft.data.splits import Example
from lora_ft.evaluation.metrics import Estimate, Scored, difference, score
from lora_ft.tasks.schema import Task

_BATCH = 8


def answer(
    one: TimedEngine, ids: Sequence[Sequence[int]], most: int, done: Callable[[int], None]
) -> tuple[list[list[int]], float]:
    """Tokens of each source up to </s>, and the seconds of all of them, in batches of like length."""
    made: list[list[int]] = [[] for _ in ids]
    seconds, finished = 0.0, 0
    for batch in by_length([np.array(row) for row in ids], _BATCH):
        reply = one.generate([ids[i] for i in batch], new=most, least=0, decoding="greedy", room=most)
        for i, tokens in zip(batch, reply["tokens"], strict=True):
            made[i] = tokens
        seconds += reply["seconds"]
        finished += len(batch)
        done(finished)
    return made, seconds


def compare(
    everyone: Sequence[TimedEngine],
    task: Task,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    stage: Callable[[str], Callable[[int], None]],
) -> dict[str, report.Quality]:
    """Score every contestant that runs on the same rows; one that fails is taken out.

    Args:
        everyone: contestants.
        task: its metric, lengths and limits hold.
        examples: rows.
        tokenizer: of all of them.
        stage: told the name of each, it gives what is told of finished rows.
    """
    ids = tokenizer.encode([example.prompt for example in examples], task.lengths.source)
    most = task.generation_options()["max_new_tokens"]
    settings, references = task.evaluate, [example.references for example in examples]
    texts: dict[str, list[str]] = {}
    scores: dict[str, Scored] = {}
    facts: dict[str, tuple[float, float]] = {}
    running = [one for one in everyone if one.process is not None]
    for one in running:
        try:
            tokens, seconds = answer(one, ids, most, stage(one.name))
        except LoraFtError as error:
            one.fail(str(error))
            continue
        texts[one.name] = tokenizer.decode(tokens)
        scores[one.name] = score(settings.metric, texts[one.name], references, settings)
        facts[one.name] = seconds, float(np.mean([len(row) for row in tokens]))
    if not texts:
        return {}
    base = reference([one for one in running if one.name in texts])
    seeds = {"seed": settings.seed, "resamples": settings.bootstrap}
    return {
        name: report.Quality(
            rows=len(examples),
            metric=settings.metric,
            score=_interval(scores[name].estimate(**seeds)),
            difference=None if name == base else _interval(difference(scores[name], scores[base], **seeds)),
            identical=share_alike(texts[name], texts[base]),
            seconds=facts[name][0],
            tokens=facts[name][1],
        )
        for name in texts
    }


def _interval(found: Estimate) -> report.Interval:
    return report.Interval(value=found.mean, low=found.low, high=found.high)

"""Score the answers of engines to real rows at their natural length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lora_ft.bench import report
from lora_ft.bench.runner import TimedEngine, reference, share_equal
from lora_ft.core.errors import LoraFtError
from lora_ft.core.tokenizer import Tokenizer, by_length
from lora_ft.data.splits import Example
from lora_ft.evaluation.metrics import Estimate, Scored, difference, score
from lora_ft.tasks.schema import Task

_BATCH = 8


def answer(
    engine: TimedEngine, ids: Sequence[Sequence[int]], limit: int, after_batch: Callable[[int], None]
) -> tuple[list[list[int]], float]:
    """Return the tokens of each answer up to </s>, and the total time. Batches hold prompts of similar length.

    Args:
        engine: Engine that answers.
        ids: Token ids of the prompts.
        limit: Maximum answer length, in tokens.
        after_batch: Receives the number of answered prompts.
    """
    answers: list[list[int]] = [[] for _ in ids]
    seconds, finished = 0.0, 0
    for batch in by_length([np.array(row) for row in ids], _BATCH):
        reply = engine.generate([ids[i] for i in batch], new=limit, least=0, decoding="greedy", room=limit)
        for i, tokens in zip(batch, reply["tokens"], strict=True):
            answers[i] = tokens
        seconds += reply["seconds"]
        finished += len(batch)
        after_batch(finished)
    return answers, seconds


def compare(
    engines: Sequence[TimedEngine],
    task: Task,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    stage: Callable[[str], Callable[[int], None]],
) -> dict[str, report.Quality]:
    """Score all running engines on the same rows; engines that fail are excluded.

    Args:
        engines: The engines.
        task: Task whose metric, lengths and limits are used.
        examples: The rows.
        tokenizer: Tokenizer of all engines.
        stage: Receives the name of each engine before it starts. Returns a function that receives the number of
            finished rows.
    """
    ids = tokenizer.encode([example.prompt for example in examples], task.lengths.source)
    limit = task.generation_options()["max_new_tokens"]
    settings, references = task.evaluate, [example.references for example in examples]
    texts: dict[str, list[str]] = {}
    scores: dict[str, Scored] = {}
    facts: dict[str, tuple[float, float]] = {}
    running = [engine for engine in engines if engine.process is not None]
    for engine in running:
        try:
            tokens, seconds = answer(engine, ids, limit, stage(engine.name))
        except LoraFtError as error:
            engine.fail(str(error))
            continue
        texts[engine.name] = tokenizer.decode(tokens)
        scores[engine.name] = score(settings.metric, texts[engine.name], references, settings)
        facts[engine.name] = seconds, float(np.mean([len(row) for row in tokens]))
    if not texts:
        return {}
    base = reference([engine for engine in running if engine.name in texts])
    seeds = {"seed": settings.seed, "resamples": settings.bootstrap}
    return {
        name: report.Quality(
            rows=len(examples),
            metric=settings.metric,
            score=_interval(scores[name].estimate(**seeds)),
            difference=None if name == base else _interval(difference(scores[name], scores[base], **seeds)),
            identical=share_equal(texts[name], texts[base]),
            seconds=facts[name][0],
            tokens=facts[name][1],
        )
        for name in texts
    }


def _interval(estimate: Estimate) -> report.Interval:
    return report.Interval(value=estimate.mean, low=estimate.low, high=estimate.high)

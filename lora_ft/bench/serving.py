"""Simulate serving: requests arrive at random, wait in a queue, and are answered in batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from lora_ft.bench import report, statistics
from lora_ft.bench.runner import TimedEngine
from lora_ft.bench.suite import Serving


def capacity(engine: TimedEngine, sources: Sequence[Sequence[int]], max_new: int, batch: int) -> float:
    """Return the throughput of an engine in full batches, in requests per second, after one warm-up batch."""
    batches = [sources[i : i + batch] for i in range(0, len(sources), batch)]
    options = {"new": max_new, "least": 0, "decoding": "greedy", "room": max_new}
    engine.generate(batches[0], **options)
    seconds = sum(engine.generate(batch_sources, **options)["seconds"] for batch_sources in batches)
    return len(sources) / seconds


def serve(
    engine: TimedEngine,
    sources: Sequence[Sequence[int]],
    rate: float,
    max_new: int,
    settings: Serving,
    seed: int,
    after_answer: Callable[[], None],
) -> report.Load:
    """Offer Poisson arrivals in an open loop: requests arrive whether or not earlier ones are answered.

    Args:
        engine: Idle engine.
        sources: Token ids of the prompts, from which requests are drawn at random.
        rate: Requests per second.
        max_new: Maximum answer length, in tokens.
        settings: Settings of the queue.
        seed: Seed of arrivals and prompts, the same for all engines.
        after_answer: Called after each answer.
    """
    process = engine.process
    assert process is not None
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, settings.requests)).tolist()
    rows = rng.integers(len(sources), size=settings.requests).tolist()
    waiting, running = deque[int](), list[int]()
    latencies, sizes, arrived = [0.0] * settings.requests, list[int](), 0
    began = time.perf_counter()
    while running or waiting or arrived < settings.requests:
        now = time.perf_counter() - began
        while arrived < settings.requests and arrivals[arrived] <= now:
            waiting.append(arrived)
            arrived += 1
        if not running and waiting:
            due = arrivals[waiting[0]] + settings.max_wait
            if len(waiting) >= settings.max_batch or now >= due or arrived == settings.requests:
                running = [waiting.popleft() for _ in range(min(len(waiting), settings.max_batch))]
                sizes.append(len(running))
                ids = [sources[rows[i]] for i in running]
                process.send("generate", ids=ids, new=max_new, least=0, decoding="greedy", room=max_new)
        if running:
            # Arrival times are drawn in advance, so the loop may block until the batch is answered.
            process.reply()
            now = time.perf_counter() - began
            for i in running:
                latencies[i] = now - arrivals[i]
                after_answer()
            running = []
            continue
        nexts = [arrivals[arrived]] if arrived < settings.requests else []
        nexts += [arrivals[waiting[0]] + settings.max_wait] if waiting else []
        time.sleep(max(min(nexts) - (time.perf_counter() - began), 0.0))
    wall = time.perf_counter() - began
    return report.Load(
        offered=rate,
        answered=settings.requests / wall,
        seconds=latencies,
        percentiles=statistics.percentiles(latencies),
        goodput=sum(value <= settings.slo for value in latencies) / wall,
        batch=float(np.mean(sizes)),
    )


def knee(loads: Sequence[report.Load], slo: float) -> float | None:
    """Return the largest load up to which 90 % of the answers come within the SLO, or None."""
    largest = None
    for load in sorted(loads, key=lambda load: load.offered):
        if float(np.mean([seconds <= slo for seconds in load.seconds])) < 0.9:
            break
        largest = load.offered
    return largest

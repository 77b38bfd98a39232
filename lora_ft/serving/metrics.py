"""Metrics for Prometheus.

The engines count their own totals. `sync` copies them: counters take the difference since the last call. A server with
several processes sets PROMETHEUS_MULTIPROC_DIR before this module is imported. Every process then writes its values to
files there, and any of them answers with the sum.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    multiprocess,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from lora_ft.serving.request_record import RequestRecord

if TYPE_CHECKING:
    from lora_ft.models.async_model import AsyncModel

CONTENT_TYPE = CONTENT_TYPE_LATEST
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
# Seconds. A tiny model answers in milliseconds, a long summary on a busy core in a minute.
_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # CPU time, memory and open files of a server of one process

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"lora_ft_{name}", about, labels, registry=registry)

        def gauge(name: str, about: str, mode: Literal["livesum", "liveall"] = "livesum") -> Gauge:
            return Gauge(f"lora_ft_{name}", about, ("bundle",), registry=registry, multiprocess_mode=mode)

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"lora_ft_{name}", about, ("model",), registry=registry, buckets=buckets)

        self._requests = counter("requests", "Finished requests.", "model", "endpoint", "status")
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", "model")
        self._new_tokens = counter("generated_tokens", "Generated tokens.", "model")
        self._first = histogram("time_to_first_token_seconds", "Time to the first token.", _LATENCIES)
        self._per_token = histogram("time_per_token_seconds", "Mean time per token after the first.", _TOKEN_LATENCIES)
        self._whole = histogram("request_seconds", "Time of a request that got an answer.", _LATENCIES)
        self._gauges = {
            "queued": gauge("queued_requests", "Requests that wait."),
            "running_rows": gauge("running_rows", "Rows that run together."),
            "max_rows": gauge("max_rows", "Maximum of rows that run together."),
            "pool_bytes": gauge("cache_pool_bytes", "Memory of the cache pool, in bytes."),
            "pool_limit": gauge("cache_pool_limit_bytes", "Maximum memory of the cache pool, in bytes."),
        }
        self._totals = {
            "steps": counter("decoder_steps", "Steps of the decoder.", "bundle"),
            "step_seconds": counter("decoder_step_seconds", "Time of the decoder's steps.", "bundle"),
            "encoder_calls": counter("encoder_calls", "Calls of the encoder.", "bundle"),
            "encoder_seconds": counter("encoder_seconds", "Time of the encoder's calls.", "bundle"),
            "adapter_loads": counter("adapter_loads", "Adapters read from their files.", "bundle"),
        }
        self._counted: dict[tuple[str, str], float] = {}

    def finished(self, record: RequestRecord, is_served: bool) -> None:
        """Count a finished request.

        Args:
            record: Request.
            is_served: True if its model is served. Other names are not labels, since anybody can invent them.
        """
        model = record.model if is_served else ""
        self._requests.labels(model, record.path, str(record.status)).inc()
        if not is_served:
            return
        self._prompt_tokens.labels(model).inc(record.prompt_tokens)
        self._new_tokens.labels(model).inc(record.new_tokens)
        if record.status == 200:
            self._whole.labels(model).observe(record.seconds)
            if record.first_token is not None:
                self._first.labels(model).observe(record.first_token)
            if record.seconds_per_token is not None:
                self._per_token.labels(model).observe(record.seconds_per_token)

    def sync(self, engines: Mapping[str, AsyncModel]) -> None:
        """Copy the state and totals of the engines."""
        for bundle, engine in engines.items():
            values = dict(_values(engine.statistics()))
            for name, gauge in self._gauges.items():
                gauge.labels(bundle).set(values[name])
            for name, total in self._totals.items():
                previous = self._counted.get((bundle, name), 0.0)
                total.labels(bundle).inc(max(0.0, values[name] - previous))
                self._counted[bundle, name] = values[name]

    def text(self) -> bytes:
        """Return all metrics in the text format, of all processes if there are several."""
        if FOLDER_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry)


def forget_process(pid: int) -> None:
    """Remove the gauges of a process that has ended."""
    multiprocess.mark_process_dead(pid)


def _values(statistics: Any) -> Iterable[tuple[str, float]]:
    """Yield the numbers of the statistics and of its nested counters."""
    for name, value in vars(statistics).items():
        if isinstance(value, int | float):
            yield name, float(value)
        elif hasattr(value, "__dict__"):
            yield from _values(value)

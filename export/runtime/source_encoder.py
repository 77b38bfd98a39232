"""Encode sources for a scheduler, beside the steps of running rows where the processor has cores for both.

Encoding one source after another between steps stalls every running row: a source of 190 tokens takes as long as seven
steps. On two cores, encoder and step with all threads in turns take 28.1 and 3.5 ms; with one thread each, side by
side, 44 and 5.9 ms. So in the same time, cores that are divided do 1.2 times the work, and running rows never stall.
A row alone still has all threads.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from lora_ft.export.runtime.counters import Counters
from lora_ft.export.runtime.job import Job
from lora_ft.export.runtime.lane import Encoded
from lora_ft.export.runtime.model import Model


class SourceEncoder:
    """The encoder of one model, which works on one source at a time.

    Args:
        model: Graphs of the bundle.
        counters: Totals that it adds to.

    Attributes:
        job: Request that was started and not taken, or None.
    """

    def __init__(self, model: Model, counters: Counters) -> None:
        self._model, self._counters = model, counters
        self._threads = model.threads // 2 if model.provider == "cpu" else 0
        self._executor: ThreadPoolExecutor | None = None
        self._future: Future[Encoded] | None = None
        self.job: Job | None = None

    @property
    def parallel(self) -> bool:
        """True if there are threads to encode beside steps."""
        return self._threads > 0

    @property
    def step_threads(self) -> int | None:
        """Threads of a step now, or None for all."""
        return None if self._future is None or self._future.done() else self._model.threads - self._threads

    @property
    def ended(self) -> bool:
        """True if the source of the request that was started is encoded, or has failed."""
        return self._future is not None and self._future.done()

    def encode(self, job: Job) -> Encoded:
        """Return the encoded source of a request, with all threads."""
        return self._encode(job, None)

    def start(self, job: Job) -> None:
        """Begin to encode the source of a request beside steps."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "lora-ft encoder")
        self.job, self._future = job, self._executor.submit(self._encode_beside, job)

    def take(self) -> Encoded:
        """Wait for the source of the request that was started, and return it or raise what encoding it raised."""
        assert self._future is not None
        future, self.job, self._future = self._future, None, None
        return future.result()

    def close(self) -> None:
        """End the thread, after the source that it encodes."""
        if self._executor is not None:
            self._executor.shutdown()

    def _encode_beside(self, job: Job) -> Encoded:
        self._model.open_step(self._model.threads - self._threads, adapted=job.prompted.adapters is not None)
        return self._encode(job, self._threads)

    def _encode(self, job: Job, threads: int | None) -> Encoded:
        began = time.perf_counter()
        ids, adapters = job.prompted.ids[None], job.prompted.adapters
        source = self._model.encode(ids, np.ones_like(ids), adapters, threads)
        encoded = Encoded(source, ids.shape[1], adapters)
        self._counters.encoder_calls += 1
        self._counters.encoder_seconds += time.perf_counter() - began
        return encoded

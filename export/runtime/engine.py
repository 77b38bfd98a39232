"""The thread that runs a scheduler, so that any thread may ask a bundle and none waits for another's request."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_ft.core.errors import LoraFtError, QueueFullError, UsageError
from lora_ft.export.runtime.counters import Counters
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.job import Event, Failed, Finished, Job
from lora_ft.export.runtime.scheduler import Limits, Scheduler

MAX_QUEUE = 256  # requests that wait
_WEIGHT = 0.05  # of the newest interval between two ends, in their mean

# Receives all events of a round, on the engine's thread. It must not block.
Deliver = Callable[[Sequence[tuple[Job, Event]]], None]


@dataclass(frozen=True)
class Statistics:
    """State and totals of an engine.

    Attributes:
        queued: Requests that wait.
        running_rows, max_rows: Rows that run, and their maximum.
        pool_bytes, pool_limit: Memory of the cache pool and its maximum, in bytes.
        adapter_loads: Adapters read from their files.
        counters: Totals since the engine began.
    """

    queued: int
    running_rows: int
    max_rows: int
    pool_bytes: int
    pool_limit: int
    adapter_loads: int
    counters: Counters


class Engine:
    """A bundle that answers requests of many threads in one running batch.

    Args:
        generator: The bundle.
        deliver: Receives the events of all requests.
        limits: Limits of rows and memory.
        max_queue: Requests that may wait.
    """

    def __init__(
        self, generator: Generator, deliver: Deliver, limits: Limits | None = None, max_queue: int = MAX_QUEUE
    ) -> None:
        if max_queue < 1:
            raise UsageError(f"max_queue is not positive (got {max_queue})", "give 1 or more")
        self.generator, self.limits, self.max_queue = generator, limits or Limits(), max_queue
        self._deliver, self._scheduler = deliver, Scheduler(generator, self.limits)
        self._changed = threading.Condition()
        self._arrivals: deque[Job] = deque()
        self._outstanding: set[Job] = set()  # neither finished nor failed
        self._queued = 0
        # running mean of the seconds between two ends, and the last end, or 0 if there was no work since
        self._interval, self._last_end = 0.0, 0.0
        self._failure: Exception | None = None
        self._closing, self._process = False, os.getpid()
        self._thread = threading.Thread(target=self._run, name="lora-ft engine", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> Exception | None:
        """Error that ended the engine's thread, or None."""
        return self._failure

    def prepare(
        self, prompt: str, options: Mapping[str, Any], adapter: str | None = None, *, label_scores: bool = False
    ) -> Job:
        """Return the job of a request, to be submitted.

        Args:
            prompt: Finished prompt.
            options: Generation options by transformers' names. They take precedence over those of the task.
            adapter: Adapter of a bank, or None for the base.
            label_scores: Score the task's labels instead of generating. Answer i has the log-probability of label i.

        Raises:
            UsageError: An option or the adapter is unknown, or the request is larger than the pool.
        """
        job = Job.of(self.generator, self.generator.prepare(prompt, options, adapter), label_scores=label_scores)
        self._scheduler.check(job)
        return job

    def submit(self, job: Job) -> None:
        """Queue a request; its events go to `deliver`, perhaps before this returns.

        Raises:
            QueueFullError: Too many requests wait.
            LoraFtError: The engine has ended.
        """
        with self._changed:
            self._require_running()
            if self.queued >= self.max_queue:
                raise QueueFullError(self.max_queue, self._retry_after())
            self._outstanding.add(job)
            self._arrivals.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Drop a request within a step; it has no further events. A finished one is left as it is."""
        with self._changed:
            job.cancelled = True
            self._outstanding.discard(job)
            self._changed.notify()

    def reload(self) -> None:
        """Read the adapters of a bank again, as `Generator.reload`; files of removed ones are closed after their rows.

        Raises:
            UsageError, LoraFtError: As `Generator.reload`.
        """
        self.generator.reload()
        with self._changed:
            self._changed.notify()

    @property
    def queued(self) -> int:
        """Number of requests that wait."""
        return sum(not job.started for job in self._outstanding.copy())

    def statistics(self) -> Statistics:
        """Return state and totals."""
        scheduler, bank = self._scheduler, self.generator.bank
        return Statistics(
            self.queued,
            scheduler.pool.rows,
            self.limits.rows,
            scheduler.pool.size,
            self.limits.memory,
            bank.loads if bank else 0,
            scheduler.counters,
        )

    def close(self, grace: float = 0.0) -> None:
        """Refuse further requests, wait until the others have ended, and stop.

        Args:
            grace: Maximum time to wait, in seconds. Requests that are unfinished then fail.
        """
        deadline = time.monotonic() + grace
        with self._changed:
            self._closing = True
            self._changed.wait_for(
                lambda: not self._outstanding or self._failure, max(0.0, deadline - time.monotonic())
            )
            late = list(self._outstanding)
            self._outstanding.clear()
            for job in late:
                job.cancelled = True
            self._changed.notify_all()
        self._thread.join()
        if late:
            error = LoraFtError("the model was closed before the answer was complete", "ask again")
            self._deliver([(job, Failed(error)) for job in late])

    def _require_running(self) -> None:
        if self._failure is not None:
            raise LoraFtError(f"the engine has failed ({type(self._failure).__name__})", "load the bundle again")
        if self._closing:
            raise LoraFtError("the model is closed", "load it again")
        if self._process != os.getpid():
            raise LoraFtError("the model was loaded before this process was forked", "load it in each process")

    def _retry_after(self) -> float:
        """Return the estimated time in which half of the queue is worked off, in seconds."""
        return max(1.0, self._interval * self.max_queue / 2)

    def _run(self) -> None:
        try:
            while self._take_arrivals():
                self._scheduler.round()
                self._hand_over(self._scheduler.take_events())
        except Exception as error:  # an error of this code; requests must not wait forever
            with self._changed:
                self._failure = error
                late = list(self._outstanding)
                self._outstanding.clear()
                self._changed.notify_all()
            self._deliver([(job, Failed(error)) for job in late])
        finally:
            self._scheduler.close()

    def _take_arrivals(self) -> bool:
        """Wait for work, and hand it to the scheduler; return False if the engine is to end."""
        with self._changed:
            while not self._arrivals and self._scheduler.idle:
                if self._closing and not self._outstanding:
                    return False
                self._changed.wait()
                self._last_end = 0.0  # a night without requests is no sign of slow answers
            while self._arrivals:
                self._scheduler.add(self._arrivals.popleft())
        return True

    def _hand_over(self, events: Sequence[tuple[Job, Event]]) -> None:
        if not events:
            return
        with self._changed:
            events = [(job, event) for job, event in events if job in self._outstanding]
            ended = {job for job, event in events if isinstance(event, Finished | Failed)}
            self._outstanding -= ended
            now = time.monotonic()
            for _ in ended:
                self._interval += _WEIGHT * (now - self._last_end - self._interval) if self._last_end else 0.0
                self._last_end = now
            if ended and self._closing:
                self._changed.notify_all()
        self._deliver(events)

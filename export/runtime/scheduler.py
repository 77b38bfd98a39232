"""Continuous batching: requests join and leave the running batch at every step.

A request is a decoding strategy (`decoding.calls`) and the rows that it needs: one, or one for each beam or sampled
answer. Each round of the scheduler

1. drops cancelled requests,
2. encodes waiting requests in the order in which they are due (`Job.due`): beside the steps of running rows
   (`source_encoder`), or where there are no cores for both, between steps and within a budget of source tokens, so that
   running answers do not stall behind a burst of newcomers,
3. takes one step of every lane and sends each request its own rows of the result.

Short sources go first among those that arrive at about the same time. A long one is not starved, since later requests
are due later and later. Nor is one that needs much memory: while the first in the queue does not fit, all wait.

A source is encoded alone. Where rows are independent (`Precision.independent`: fp32 and int8 on processors), a row's
tokens are therefore those of the request alone. In other precisions, on GPUs and with adapters, kernels change with the
number of rows, so a near-tie may be decided otherwise.

The scheduler has no thread of its own; `engine.Engine` runs it.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.export.runtime.counters import Counters
from lora_ft.export.runtime.decoding.calls import DraftLengths, Forget, Keep, Likeliest, Logits, Next
from lora_ft.export.runtime.decoding.draft_length import controller_of
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.job import Event, Failed, Finished, Job
from lora_ft.export.runtime.lane import Encoded
from lora_ft.export.runtime.pool import JobLane, Pool
from lora_ft.export.runtime.source_encoder import SourceEncoder

MAX_ROWS = 32  # rows that run together: a step of 32 rows takes 0.37 ms a row in int8, 16 rows 0.43, 8 rows 0.54
ENCODER_BUDGET = 256  # source tokens that are encoded in a round, 24 ms in int8 on two cores


@dataclass(frozen=True)
class Limits:
    """Limits of a scheduler.

    Attributes:
        rows: Rows that run together.
        memory: Bytes of the cache pool.
        encoder_tokens: Source tokens that are encoded in a round; a longer source is encoded in a round of its own.
    """

    rows: int = MAX_ROWS
    memory: int = 2**30
    encoder_tokens: int = ENCODER_BUDGET

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"{name} is not positive (got {value})", "give 1 or more")


class Scheduler:
    """Requests of one bundle, in one thread.

    Args:
        generator: The bundle.
        limits: Limits of rows and memory.

    Attributes:
        pool: Running rows.
        counters: Totals.
    """

    def __init__(self, generator: Generator, limits: Limits) -> None:
        self._generator, self._model, self.limits = generator, generator.model, limits
        self.pool, self.counters = Pool(self._model, limits.rows, limits.memory), Counters()
        self._encoder = SourceEncoder(self._model, self.counters)
        self._bank = generator.bank
        self._events: list[tuple[Job, Event]] = []
        self._waiting: list[Job] = []  # by their due time

    @property
    def idle(self) -> bool:
        """True if no request is waiting or running, and no adapter is to be forgotten."""
        busy = self._waiting or self.pool.rows or self._encoder.job
        return not busy and self._bank is self._generator.bank

    def check(self, job: Job) -> None:
        """Raise UsageError if a request exceeds the limits even when it has the pool to itself."""
        if job.rows > self.limits.rows:
            raise UsageError(
                f"the request needs {job.rows} rows, more than run together ({self.limits.rows})",
                "ask for fewer beams or answers",
            )
        needed = self.pool.needed(job)
        if needed > self.limits.memory:
            raise UsageError(
                f"the request needs {needed / 2**20:,.0f} MiB of cache, more than the pool has "
                f"({self.limits.memory / 2**20:,.0f} MiB)",
                "shorten the prompt or max_new_tokens, or give the pool more memory",
            )

    def add(self, job: Job) -> None:
        """Put a request into the queue."""
        insort(self._waiting, job, key=attrgetter("due"))

    def round(self) -> None:
        """Run one round; `take_events` returns what became of it."""
        if self._bank is not self._generator.bank:  # it was read again
            self._bank = self._generator.bank
            self.pool.forget_adapters()
        self._drop_cancelled()
        self._admit()
        for lane in list(self.pool.lanes):
            if lane.owners:
                try:
                    self._step(lane)
                except Exception as error:  # a failed call leaves the rows of its lane undefined
                    self._fail(lane, error)
        self.pool.tidy()

    def close(self) -> None:
        """End the encoder's thread."""
        self._encoder.close()

    def take_events(self) -> list[tuple[Job, Event]]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    def _drop_cancelled(self) -> None:
        if any(job.cancelled for job in self._waiting):
            for job in self._waiting:
                if job.cancelled:
                    job.decoding.close()
            self._waiting = [job for job in self._waiting if not job.cancelled]
        for lane in self.pool.lanes:
            for job in lane.jobs:
                if job.cancelled:
                    self._release(job)

    def _admit(self) -> None:
        """Let the request whose source is encoded join, and encode further ones."""
        if self._encoder.job and not self._admit_encoded():
            return
        budget = self.limits.encoder_tokens
        while self._waiting and budget > 0:
            job = self._waiting[0]
            beside = self._encoder.parallel and self.pool.rows > 0
            exceeds = not beside and budget < min(job.length, self.limits.encoder_tokens)
            if exceeds or self.pool.rows + job.rows > self.limits.rows or self.pool.place(job) is None:
                return
            del self._waiting[0]
            job.started = True
            if beside:
                self._encoder.start(job)
                return
            budget -= job.length
            try:
                self._join(job, self._encoder.encode(job))
            except Exception as error:
                self._end(job, Failed(error))

    def _admit_encoded(self) -> bool:
        """Let the request whose source was encoded beside steps join; return False if it is not ready."""
        job, rows = self._encoder.job, self.pool.rows
        if job is None or (rows and not self._encoder.ended):
            return False
        if not job.cancelled and self.pool.place(job) is None:  # lanes were merged since; rows will leave
            return False
        try:
            encoded = self._encoder.take()
            if job.cancelled:
                job.decoding.close()
            else:
                self._join(job, encoded)
        except Exception as error:
            self._end(job, Failed(error))
        return True

    def _join(self, job: Job, encoded: Encoded) -> None:
        lane = self.pool.place(job)
        assert lane is not None
        self.counters.prompt_tokens += job.length
        self.pool.join(job, lane, encoded)
        self._resume(job, None)

    def _step(self, lane: JobLane) -> None:
        """Answer the call of every request in a lane, with one step for all that ask for one token a row."""
        company = self.pool.rows > 1
        several, single = list[Job](), list[Job]()
        for job in lane.jobs:
            tokens = job.call.tokens
            if tokens.shape[1] > 1 and company and isinstance(job.call, Next):
                job.call.tokens = tokens[:, :1]  # in company, a draft costs the others more than it gains
                single.append(job)
            else:
                (several if tokens.shape[1] > 1 else single).append(job)
        longest = max(int(lane.lengths[s]) + job.call.tokens.shape[1] for job in lane.jobs for s in job.slots)
        self.pool.grow(lane, longest)
        began = time.perf_counter()
        if single:
            self._step_together(lane, single)
        for job in several:
            if job.lane is lane:
                self._step_alone(lane, job)
        self.counters.steps += 1
        self.counters.step_seconds += time.perf_counter() - began

    def _step_together(self, lane: JobLane, jobs: Sequence[Job]) -> None:
        tokens = np.zeros((lane.rows, 1), np.int64)
        for job in jobs:
            tokens[job.slots] = job.call.tokens
        plain = all(isinstance(job.call, Next) and not job.call.forbid_eos for job in jobs)
        threads = self._encoder.step_threads
        columns = _shared_columns(jobs)
        output = lane.next(tokens, threads) if plain else lane.logits(tokens, threads, columns)
        for job in jobs:
            lane.advance(job.slots)
        ready = plain or columns is not None
        results = [(job, self._result(job, _rows(output, job.slots), ready)) for job in jobs]
        for job, result in results:
            if isinstance(job.call, Next):
                job.call.shared = len(lane.owners) > 1
            self._resume(job, result)

    def _result(self, job: Job, output: np.ndarray, ready: bool) -> Any:
        """Return what a call asked for, from the request's rows of a step, which may be changed."""
        call = job.call
        if ready:
            return output
        if isinstance(call, Logits):
            return output if call.columns is None else output[..., call.columns]
        if isinstance(call, Likeliest):
            return self._model.rank(
                output, call.count, log_softmax=call.log_softmax, before=call.before, after=call.after
            )
        if call.forbid_eos:
            output[..., list(self._generator.special.ends)] = -np.inf
        return output.argmax(axis=-1)

    def _step_alone(self, lane: JobLane, job: Job) -> None:
        """Answer a call of several tokens: a checked draft, or the forced beginning of an answer."""
        if len(job.slots) > 1:
            raise LoraFtError("a call of several tokens has several rows", "report this error")
        (slot,) = job.slots
        source, cache = lane.alone(slot)
        call = job.call
        if isinstance(call, Next):
            result = self._model.step(
                source, cache, call.tokens, forbid_eos=call.forbid_eos, threads=self._encoder.step_threads
            )
        else:
            columns = call.columns if isinstance(call, Logits) else None
            result = self._model.logits(source, cache, call.tokens, columns=columns, threads=self._encoder.step_threads)
        lane.lengths[slot] += call.tokens.shape[1]
        self._resume(job, result)

    def _resume(self, job: Job, result: Any) -> None:
        """Send a request the result of its call, and let it go on to its next call."""
        lane = job.lane
        assert lane is not None
        try:
            while True:
                item = job.decoding.send(result)
                result = None
                if isinstance(item, TokenChunk):
                    self.counters.generated_tokens += len(item.tokens)
                    self._events.append((job, item))
                elif isinstance(item, Keep):
                    lane.reorder(job.slots, item.rows)
                elif isinstance(item, Forget):
                    lane.forget(job.slots, item.counts)
                elif isinstance(item, DraftLengths):
                    result = controller_of(self._model)
                else:
                    job.call = item
                    return
        except StopIteration:
            self._end(job, Finished())
        except Exception as error:
            self._end(job, Failed(error))

    def _end(self, job: Job, event: Event) -> None:
        self._events.append((job, event))
        self._release(job)

    def _release(self, job: Job) -> None:
        job.decoding.close()
        self.pool.leave(job)

    def _fail(self, lane: JobLane, error: Exception) -> None:
        for job in lane.jobs:
            self._end(job, Failed(error))


def _shared_columns(jobs: Sequence[Job]) -> np.ndarray | None:
    """Return the columns of the logits that all calls ask for, or None if they ask for different results."""
    columns = [job.call.columns if isinstance(job.call, Logits) else None for job in jobs]
    first = columns[0]
    if first is None or any(other is None or not np.array_equal(first, other) for other in columns[1:]):
        return None
    return first


def _rows(values: np.ndarray, slots: Sequence[int]) -> np.ndarray:
    """Return some rows: a view of a single one, which may have 128 KiB of logits, else a copy."""
    return values[slots[0] : slots[0] + 1] if len(slots) == 1 else values[list(slots)]

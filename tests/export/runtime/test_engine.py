"""The engine's thread answers other threads, survives failing requests, and says when it cannot."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_ft.core.errors import LoraFtError, QueueFullError, UsageError
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.engine import Engine
from lora_ft.export.runtime.job import Event, Failed, Finished, Job
from lora_ft.export.runtime.scheduler import Limits, Scheduler
from tests.export.oracle import make_bundle, redraw
from tests.tiny import save_tiny_t5

TEXTS = [f"say: {'word ' * (i % 5)}{i}" for i in range(30)]
LONG = {"max_new_tokens": 400, "min_new_tokens": 400}


@dataclass
class Inbox:
    """Collects events."""

    tokens: dict[Job, list[int]] = field(default_factory=dict)
    ends: dict[Job, Event] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def deliver(self, events: Sequence[tuple[Job, Event]]) -> None:
        with self.changed:
            for job, event in events:
                if isinstance(event, TokenChunk):
                    self.tokens.setdefault(job, []).extend(event.tokens.tolist())
                else:
                    self.ends[job] = event
            self.changed.notify_all()

    def wait(self, job: Job) -> Event:
        """Return the end of a request."""
        with self.changed:
            assert self.changed.wait_for(lambda: job in self.ends, 60)
        return self.ends[job]

    def wait_for_tokens(self, job: Job) -> None:
        """Wait until a request has begun."""
        with self.changed:
            assert self.changed.wait_for(lambda: job in self.tokens, 60)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder: Path = tmp_path_factory.mktemp("engine")
    make_bundle(redraw(save_tiny_t5(folder / "checkpoint"), seed=14, end=3), folder / "bundle")
    return Generator.load(folder / "bundle", threads=1)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def engine(generator: Generator, inbox: Inbox) -> Iterator[Engine]:
    engine = Engine(generator, inbox.deliver, Limits(rows=4), max_queue=8)
    yield engine
    engine.close()


def test_requests_of_many_threads_are_answered_as_alone(generator: Generator, inbox: Inbox) -> None:
    engine = Engine(generator, inbox.deliver, Limits(rows=5), max_queue=100)
    jobs: dict[str, Job] = {}

    def ask(texts: Sequence[str]) -> None:
        for text in texts:
            jobs[text] = engine.prepare(text, {})
            engine.submit(jobs[text])

    threads = [threading.Thread(target=ask, args=(TEXTS[i::3],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text, answer in zip(TEXTS, generator.answer(TEXTS, batch_size=1), strict=True):
        assert inbox.wait(jobs[text]) == Finished()
        assert inbox.tokens[jobs[text]] == answer.tokens.tolist()
    engine.close()


def test_cancelled_requests_have_no_further_events(engine: Engine, inbox: Inbox) -> None:
    job, other = engine.prepare(TEXTS[0], LONG), engine.prepare(TEXTS[1], {})
    engine.submit(job)
    inbox.wait_for_tokens(job)
    engine.cancel(job)
    engine.submit(other)
    assert inbox.wait(other) == Finished()
    assert job not in inbox.ends
    assert engine.statistics().running_rows == 0


def test_the_queue_has_a_limit_and_cancelled_requests_leave_it(engine: Engine, inbox: Inbox) -> None:
    running = [engine.prepare(text, LONG) for text in TEXTS[:4]]
    for job in running:
        engine.submit(job)
    for job in running:
        inbox.wait_for_tokens(job)
    waiting = [engine.prepare(text, {}) for text in TEXTS[:8]]
    for job in waiting:
        engine.submit(job)
    late = engine.prepare(TEXTS[0], {})
    with pytest.raises(QueueFullError, match="the queue is full"):
        engine.submit(late)
    assert engine.statistics().queued == 8
    engine.cancel(waiting[3])
    engine.submit(late)
    for job in (*running, *waiting, late):
        engine.cancel(job)


def test_time_without_requests_does_not_delay_a_retry(
    engine: Engine, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten hours pass after each answer."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 36_000 * len(inbox.ends))
    monkeypatch.setattr("lora_ft.export.runtime.engine.time", clock)
    for text in TEXTS[:2]:
        job = engine.prepare(text, {})
        engine.submit(job)
        assert inbox.wait(job) == Finished()
    jobs = [engine.prepare(TEXTS[0], LONG) for _ in range(30)]
    with pytest.raises(QueueFullError) as refusal:
        for job in jobs:
            engine.submit(job)
    assert refusal.value.retry_after < 60
    for job in jobs:
        engine.cancel(job)


def test_larger_requests_than_the_limits_are_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="needs 5 rows"):
        engine.prepare(TEXTS[0], {"num_beams": 5})
    with pytest.raises(UsageError, match="max_queue is not positive"):
        Engine(engine.generator, lambda events: None, max_queue=0)


def test_an_error_of_the_scheduler_fails_all_requests_and_later_ones(
    generator: Generator, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(generator, inbox.deliver)
    error = RuntimeError("broken")

    def broken(self: Scheduler) -> None:
        raise error

    monkeypatch.setattr(Scheduler, "round", broken)
    job = engine.prepare(TEXTS[0], {})
    engine.submit(job)
    assert inbox.wait(job) == Failed(error)
    assert engine.failure is error
    with pytest.raises(LoraFtError, match="the engine has failed"):
        engine.submit(engine.prepare(TEXTS[1], {}))
    engine.close()


def test_a_forked_child_is_told_to_load_the_bundle_itself(engine: Engine) -> None:
    job = engine.prepare(TEXTS[0], {})
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            engine.submit(job)
            os.write(writing, b"accepted")
        except LoraFtError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert b"before this process was forked" in pipe.read()
    os.waitpid(child, 0)

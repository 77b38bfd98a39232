"""The open loop, in virtual time, and the calls of the process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.bench.completions import Reply, Request
from lora_ft.bench.load_generator import Calls, offer
from lora_ft.core.errors import LoraFtError
from tests.lora_ft.bench.virtual_time import run


class Queue:
    """A target with one worker, which answers requests one after another in a fixed time each."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        self._seconds, self._error = seconds, error
        self._lock = asyncio.Lock()
        self.asked: list[tuple[float, int]] = []

    async def models(self) -> list[str]:
        return ["a"]

    def prepare(self, requests: Sequence[Request]) -> None: ...

    async def ask(self, number: int) -> float:
        self.asked.append((asyncio.get_running_loop().time(), number))
        if self._error is not None:
            raise self._error
        async with self._lock:
            await asyncio.sleep(self._seconds)
        return asyncio.get_running_loop().time()

    def reply(self, outcome: float, due: float, sent: float) -> Reply:
        return Reply(200, outcome - due, outcome - due, outcome - due, 1, "", sent - due)

    def figures(self) -> dict[str, float]:
        return {}


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.floats(0.01, 3))
def test_requests_are_sent_on_time_whether_or_not_earlier_ones_are_answered(
    unsorted: list[float], seconds: float
) -> None:
    times, target = sorted(unsorted), Queue(seconds)
    replies = run(offer(target, times, list(range(len(times))), 1000.0))
    assert [number for _, number in target.asked] == list(range(len(times)))
    assert [time for time, _ in target.asked] == pytest.approx(times, abs=1e-6)
    free, expected = 0.0, []
    for time in times:
        free = max(free, time) + seconds
        expected.append(free - time)
    assert [reply.end for reply in replies] == pytest.approx(expected, abs=1e-6)


def test_a_request_fails_after_its_limit_and_others_go_on() -> None:
    replies = run(offer(Queue(2.0), [0.0, 0.5, 10.0], [0, 1, 2], 3.0))
    assert [reply.status for reply in replies] == [200, 0, 200]
    assert replies[1].end == pytest.approx(3.0)
    assert replies[1].text.startswith("TimeoutError")


def test_a_connection_that_fails_is_a_failed_request() -> None:
    (reply,) = run(offer(Queue(1.0, ConnectionRefusedError("refused")), [0.25], [0], 3.0))
    assert (reply.status, reply.end, reply.text) == (0, 0.0, "ConnectionRefusedError: refused")


def test_calls_need_a_target() -> None:
    with pytest.raises(LoraFtError, match="there is no target"):
        asyncio.run(Calls().models(0.0))


def test_a_server_that_cannot_be_reached_is_an_error() -> None:
    async def main() -> Any:
        calls = Calls()
        await calls.server("http://127.0.0.1:9", "", True, 1.0)  # discard, which no machine serves today
        return await calls.models(0.0)

    with pytest.raises(LoraFtError, match="cannot be reached"):
        asyncio.run(main())


def test_an_overloaded_target_is_spared_the_remaining_requests() -> None:
    """Request i waits for i others, so all after the second miss their limit, whether or not they are answered yet."""
    target = Queue(1.0)
    times, count = [0.0, 0.1, 0.2, 0.3, 2.6, *(9.0 + i for i in range(9))], 14
    replies = run(offer(target, times, list(range(count)), 100.0, [2.0] * count, 1))
    assert [number for _, number in target.asked] == [0, 1, 2, 3]  # at 2.6, the third and the fourth are late
    assert [reply.end for reply in replies] == pytest.approx([1.0, 1.9, 2.8, 3.7])
    assert len(run(offer(Queue(1.0), times, list(range(count)), 100.0, [2.0] * count, 2))) == 5
    assert len(run(offer(Queue(1.0), times, list(range(count)), 100.0, [2.0] * count, 3))) == count
    assert len(run(offer(Queue(1.0), times, list(range(count)), 100.0, [2.0] * count))) == count


def test_failed_requests_count_as_missed() -> None:
    target = Queue(1.0, ConnectionRefusedError("refused"))
    assert len(run(offer(target, [0.0, 1.0, 2.0], [0, 1, 2], 3.0, [9.0] * 3, 0))) == 1

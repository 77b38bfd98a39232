"""Waiting for an answer that nobody may want any more: the client can go away, and time can run out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from lora_ft.serving.body import ClientGone
from lora_ft.serving.errors import RequestError

Result = TypeVar("Result")


def deadline_exceeded() -> RequestError:
    """Return the error about a request that takes too long (status 504)."""
    return RequestError(
        "the request took longer than its deadline",
        "ask for shorter answers, or retry when the server is less busy",
        status=504,
        code="deadline_exceeded",
    )


async def unless_gone(work: Coroutine[Any, Any, Result], receive: Receive, deadline: float) -> Result:
    """Return the result of `work`, which is cancelled when the client goes away or the deadline passes.

    Args:
        work: Work of which the client waits for the result.
        receive: Next message of the request, whose body was read.
        deadline: Time of the monotonic clock, in seconds.

    Raises:
        ClientGone: The client closed the connection.
        RequestError: The deadline passed (status 504).
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait(
            (task, disconnect), timeout=max(0.0, deadline - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
        )
        if task.done():
            return task.result()
        if disconnect.done():
            raise ClientGone
        raise deadline_exceeded()
    finally:
        for pending in (task, disconnect):
            pending.cancel()
        for pending in (task, disconnect):
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await pending


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

"""Server-sent events: one JSON value each, and `[DONE]` after the last one.

An error after the first event cannot change the status any more. It becomes the last event, {"error": ...}, which
OpenAI's clients raise.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lora_ft.core.errors import LoraFtError
from lora_ft.serving.answers import engine_failure
from lora_ft.serving.body import ClientGone
from lora_ft.serving.errors import RequestError, internal_error
from lora_ft.serving.request_record import CLIENT_GONE, RequestRecord
from lora_ft.serving.waiting import unless_gone

_LAST_SECONDS = 2.0  # for the error event, which a client that reads nothing would block
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would collect the events otherwise
}


class EventStream(Response):
    """An answer that is sent piece by piece.

    Args:
        values: JSON values to send.
        release: Frees the rows of the request; called at the end in any case.
        record: Record of the request, which gets the code of an error.
        deadline: Time of the monotonic clock, in seconds.

    Attributes:
        quiet_seconds: Time between comments while there is no event, since proxies close connections that are silent.
    """

    quiet_seconds = 15.0

    def __init__(
        self,
        values: AsyncGenerator[dict[str, Any], None],
        release: Callable[[], None],
        record: RequestRecord,
        deadline: float,
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._values, self._release, self._record, self._deadline = values, release, record, deadline
        self._sent = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await unless_gone(self._write(send), receive, self._deadline)
        except ClientGone:
            self._record.status, self._record.code = CLIENT_GONE, "client_gone"
        except RequestError as error:
            await self._fail(send, error)
        except LoraFtError as error:
            await self._fail(send, engine_failure(error))
        except Exception:  # it is logged by the caller
            await self._fail(send, internal_error())
            raise
        finally:
            self._release()

    async def _write(self, send: Send) -> None:
        beats = asyncio.create_task(self._beat(send))
        try:
            async with contextlib.aclosing(self._values) as values:
                async for value in values:
                    self._sent = time.monotonic()
                    await _send(send, _event(json.dumps(value)))
        finally:
            beats.cancel()
            await asyncio.wait((beats,))
        await _send(send, _event("[DONE]"), last=True)

    async def _beat(self, send: Send) -> None:
        """Send a comment whenever there was no event for a while."""
        while True:
            await asyncio.sleep(self.quiet_seconds)
            if time.monotonic() - self._sent >= self.quiet_seconds:
                await _send(send, b": waiting\n\n")

    async def _fail(self, send: Send, error: RequestError) -> None:
        self._record.status = error.status
        self._record.refuse(error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await _send(send, _event(json.dumps(error.body())), last=True)


def _event(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


async def _send(send: Send, body: bytes, *, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not last})

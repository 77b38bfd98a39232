"""The entrance of a cluster: it reads a request within limits, sends it to a replica, and passes the answer on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lora_ft.deploy.forwarded_request import ID, ForwardedRequest, Head, Part
from lora_ft.deploy.retried_answer import Ask, retried
from lora_ft.serving.body import ClientGone, too_slow
from lora_ft.serving.limits import Limits
from lora_ft.serving.request_log import RequestLog
from lora_ft.serving.request_record import CLIENT_GONE, request_id
from lora_ft.serving.waiting import deadline_exceeded

_SPARE_SECONDS = 5.0  # after the deadline, for the replica's own answer about it
# Headers of one connection, which do not concern the next one (RFC 9110, section 7.6.1).
_HOP_BY_HOP = {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}


class ForwardedAnswer(Response):
    """The answer of a replica, or of a second one if the first dies.

    Args:
        ask: Returns the answer of one replica.
        request: Request for the replicas.
        log: Gets an event for a request that is sent again.
    """

    def __init__(self, ask: Ask, request: ForwardedRequest, log: RequestLog) -> None:
        super().__init__()
        self._ask, self._request, self._log = ask, request, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(retried(self._ask, self._request, self._log)) as parts:
            async for part in parts:
                await _send(send, part)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def forwarded(ask: Ask, request: Request, limits: Limits, log: RequestLog) -> Response:
    """Return the answer to a request.

    Args:
        ask: Returns the answer of one replica.
        request: Request of a client.
        limits: Limits of the server. Replicas check them; here they bound what is read.
        log: Log.
    """
    try:
        async with asyncio.timeout(limits.body_seconds):
            body = await _body(request, limits.body_bytes + 1)  # a byte too many is refused by the replica
    except TimeoutError:
        error = too_slow(limits)
        return JSONResponse(error.body(), error.status)
    except ClientGone:
        return Response(status_code=CLIENT_GONE)
    identity = request_id(request.headers.get("x-request-id"))
    headers = [(name, value) for name, value in request.headers.raw if name not in (*_HOP_BY_HOP, ID)]
    headers.append((ID, identity.encode()))
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))  # an application may have a prefix
    ask = functools.partial(_until, time.monotonic() + limits.seconds + _SPARE_SECONDS, ask)
    sent = ForwardedRequest(request.method, path, request.scope["query_string"], tuple(headers), body)
    return ForwardedAnswer(ask, sent, log)


async def _until(deadline: float, ask: Ask, request: ForwardedRequest) -> AsyncGenerator[Part, None]:
    """Yield the answer of a replica. The deadline also holds while there is no replica."""
    async with contextlib.aclosing(ask(request)) as parts:
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    part = await anext(parts)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise deadline_exceeded() from error
            yield part


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    while len(body) < most:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(body[:most])


async def _send(send: Send, part: Part) -> None:
    if isinstance(part, Head):
        await send({"type": "http.response.start", "status": part.status, "headers": [list(h) for h in part.headers]})
    else:
        await send({"type": "http.response.body", "body": part, "more_body": True})

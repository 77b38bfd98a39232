"""An answer that survives the death of the process that gives it.

A request has no side effects, so it may be sent again. If its replica dies, it is sent once more, to another replica.
The client of a stream has already received a part. The second answer is compared with it (`stream_position`), and the
client gets the rest. Greedy answers and those with a seed are the same again. A sampled answer may differ, and the
stream then ends with an error, since it cannot be continued by another answer.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable

from lora_ft.core.errors import LoraFtError
from lora_ft.deploy.forwarded_request import ForwardedRequest, Head, Part
from lora_ft.deploy.stream_position import DifferentAnswer, StreamPosition
from lora_ft.serving.answers import engine_failure
from lora_ft.serving.errors import RequestError
from lora_ft.serving.request_log import RequestLog

Ask = Callable[[ForwardedRequest], AsyncGenerator[Part, None]]

_END = b"\n\n"  # of an event
_COMMENT = b":"  # the first byte of a line that keeps the connection of a waiting stream open


class ReplicaDied(LoraFtError):
    """The process that gave an answer died."""


async def retried(ask: Ask, request: ForwardedRequest, log: RequestLog) -> AsyncGenerator[Part, None]:
    """Yield the answer to a request, which is sent again once if its replica dies.

    Args:
        ask: Returns the answer of one replica. It raises ReplicaDied or RequestError.
        request: Request with an id (X-Request-Id), so that the second answer has the ids of the first.
        log: Gets an event for a request that is sent again.
    """
    sent = _Sent()
    for last in (False, True):
        try:
            async with contextlib.aclosing(_continued(ask(request), sent)) as parts:
                async for part in parts:
                    yield part
            return
        except ReplicaDied as error:
            failure = engine_failure(error)
        except DifferentAnswer as error:
            failure, last = engine_failure(error), True
        except RequestError as error:
            failure, last = error, True
        if last:
            for part in _failed(failure, sent):
                yield part
            return
        log.event("request_retried", request_id=request.id, path=request.path, events=sent.position.events)
        sent.position.restart()


class _Sent:
    """What the client has received.

    Attributes:
        head: Head of the answer, or None.
        position: Place in its stream.
    """

    def __init__(self) -> None:
        self.head: Head | None = None
        self.position = StreamPosition()


async def _continued(parts: AsyncGenerator[Part, None], sent: _Sent) -> AsyncGenerator[Part, None]:
    """Yield what the client has not received yet. An answer that is not a stream is sent when it is complete."""
    head: Head | None = None
    body = b""
    async with contextlib.aclosing(parts):
        async for part in parts:
            if isinstance(part, Head):
                head = part
                if head.is_stream and sent.head is None:
                    sent.head = head
                    yield head
                elif sent.head is not None and head.status != sent.head.status:
                    raise DifferentAnswer("the second answer has another status")
                continue
            body += part
            if head is None or not head.is_stream:
                continue
            while _END in body:
                event, _, body = body.partition(_END)
                remainder = event if event.startswith(_COMMENT) else sent.position.remainder(event)
                if remainder:
                    yield remainder + _END
    if head is None:
        raise ReplicaDied("the replica ended without an answer")
    if not head.is_stream:
        sent.head = head
        yield head
        yield body


def _failed(error: RequestError, sent: _Sent) -> list[Part]:
    """Return the parts that tell the client about a failure: an answer, or the last event of a stream."""
    if sent.head is not None:
        return [b"data: " + json.dumps(error.body()).encode() + _END]
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    return [Head(error.status, tuple((name.lower().encode(), value.encode()) for name, value in headers.items())), body]

"""An HTTP request as data, to send it to another process, and the answer of an ASGI application to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Scope

Header = tuple[bytes, bytes]

ID = b"x-request-id"
_LONGEST = 256  # letters of a model's name; the router need not carry longer ones
_LAST_SECONDS = 5.0  # for an application to notice that its client has gone


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer."""

    status: int
    headers: tuple[Header, ...]

    @property
    def is_stream(self) -> bool:
        """True for server-sent events."""
        return any(name.lower() == b"content-type" and b"text/event-stream" in value for name, value in self.headers)


Part = Head | bytes  # an answer is a head, and then bytes


@dataclass(frozen=True)
class ForwardedRequest:
    """A request with its whole body.

    Attributes:
        method: HTTP method.
        path: Path, decoded.
        query: Query string, as sent.
        headers: Headers with lower-case names.
        body: Body.
    """

    method: str
    path: str
    query: bytes
    headers: tuple[Header, ...]
    body: bytes

    @property
    def id(self) -> str:
        """Id of the request, or "" if it has none."""
        return next((value.decode("latin-1") for name, value in self.headers if name == ID), "")

    @property
    def model(self) -> str:
        """Model that the body names, or "" if it names none."""
        try:
            content = json.loads(self.body)
        except (ValueError, RecursionError):
            return ""
        model = content.get("model") if isinstance(content, dict) else None
        return model if isinstance(model, str) and len(model) <= _LONGEST else ""

    def scope(self) -> Scope:
        """Return the ASGI scope."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": self.query,
            "headers": [list(header) for header in self.headers],
            "client": None,
            "server": None,
        }


async def answer_parts(app: ASGIApp, request: ForwardedRequest) -> AsyncGenerator[Part, None]:
    """Yield the answer of an application as it is written. Bytes that are ready together come together.

    Leaving the iteration tells the application that its client has gone.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    unread = [request.body]
    client_gone = asyncio.Event()

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await client_gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.put_nowait(message)

    task = asyncio.ensure_future(_called(app, request.scope(), receive, send))
    task.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                yield Head(message["status"], tuple((bytes(name), bytes(value)) for name, value in message["headers"]))
                continue
            body, ended = message.get("body", b""), False
            while not messages.empty() and not ended:
                following = messages.get_nowait()
                ended = following is None
                body += b"" if following is None else following.get("body", b"")
            if body:
                yield body
            if ended:
                break
        await task
    finally:
        client_gone.set()
        if not task.done():
            await asyncio.wait([task], timeout=_LAST_SECONDS)
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def _called(app: ASGIApp, scope: Scope, receive: Any, send: Any) -> None:
    await app(scope, receive, send)

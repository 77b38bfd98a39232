"""A cheap HTTP/1.1 client for asyncio, which notes when each piece of a body arrives.

The load generator shares the machine with the server that it measures, so its work must not slow the server down. This
client only splits chunks and reads the clock. Texts are parsed after the measurement (`completions`).
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from lora_ft.core.errors import LoraFtError, UsageError

_BROKEN = "the server sent no valid HTTP"


@dataclass
class Response:
    """A response.

    Attributes:
        status: HTTP status.
        headers: Header fields, names in lower case.
        pieces: Pieces of the body with the time at which each was complete, in seconds of the loop's clock.
        end: Time of the end.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    end: float = 0.0

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(piece for _, piece in self.pieces)


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._response = Response()
        self._remaining: int | None = None  # bytes of the body; None for chunks
        self._until_close = False
        self._reply: asyncio.Future[Response] | None = None
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def exchange(self, request: bytes) -> Response:
        """Send a request and return its response.

        Raises:
            ConnectionError: The connection was closed before the response was complete.
        """
        if not self.open or self._transport is None:
            raise ConnectionResetError("the connection is closed")
        self._buffer.clear()
        self._response, self._remaining, self._until_close = Response(), None, False
        self._reply = self._loop.create_future()
        self._transport.write(request)
        try:
            return await self._reply
        except asyncio.CancelledError:
            self.close()
            raise

    def data_received(self, data: bytes) -> None:
        """Take bytes of the response."""
        if self._reply is None or self._reply.done():
            self.close()
            return
        now = self._loop.time()
        self._buffer += data
        try:
            if not self._response.status and not self._read_head():
                return
            finished = self._read_chunks(now) if self._remaining is None else self._read_plain(now)
        except ValueError:
            self._fail(LoraFtError(_BROKEN))
            return
        if finished:
            self._finish(now)

    def connection_lost(self, error: Exception | None) -> None:
        """End a body that lasts until the connection is closed; any other response is lost."""
        self.open = False
        if self._reply is None or self._reply.done():
            return
        if self._until_close:
            self._finish(self._loop.time())
        else:
            self._fail(ConnectionResetError("the connection was closed"))

    @property
    def started(self) -> bool:
        """True if a part of the response has arrived."""
        return bool(self._buffer or self._response.status)

    def close(self) -> None:
        """Close the connection."""
        self.open = False
        if self._transport is not None:
            self._transport.close()

    def _finish(self, now: float) -> None:
        self._response.end = now
        if self._until_close or self._response.headers.get("connection", "").lower() == "close":
            self.close()
        assert self._reply is not None
        self._reply.set_result(self._response)

    def _fail(self, error: Exception) -> None:
        self.close()
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)

    def _read_head(self) -> bool:
        """Read status and headers; return False while they are incomplete."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        protocol, status, *_ = first.split(" ")
        if not protocol.startswith("HTTP/1."):
            raise ValueError(first)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._response.status, self._response.headers = int(status), headers
        if headers.get("transfer-encoding", "").lower() != "chunked":
            self._until_close = "content-length" not in headers
            self._remaining = int(headers.get("content-length", 0))
        return True

    def _read_plain(self, now: float) -> bool:
        """Take bytes of a body without chunks; return True at its end."""
        if self._buffer:
            self._response.pieces.append((now, bytes(self._buffer)))
            self._remaining = (self._remaining or 0) - len(self._buffer)
            self._buffer.clear()
        return not self._until_close and (self._remaining or 0) <= 0

    def _read_chunks(self, now: float) -> bool:
        """Take the complete chunks; return True at the end of the body."""
        while (line := self._buffer.find(b"\r\n")) >= 0:
            size = int(bytes(self._buffer[:line]).split(b";")[0], 16)
            if size == 0:
                return self._buffer.find(b"\r\n\r\n", line) >= 0
            end = line + 2 + size
            if len(self._buffer) < end + 2:
                return False
            self._response.pieces.append((now, bytes(self._buffer[line + 2 : end])))
            del self._buffer[: end + 2]
        return False


class HttpClient:
    """Keep-alive connections to one server.

    Args:
        url: Address, e.g. http://127.0.0.1:8000.
        key: API key, or "".
    """

    def __init__(self, url: str, key: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is not an address", "write http://HOST:PORT")
        self._host, self._secure = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = f"Host: {parts.netloc}\r\n" + (f"Authorization: Bearer {key}\r\n" if key else "")
        self._idle: list[Connection] = []

    def message(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return the bytes of a request with a JSON body."""
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n"
        return f"{head}Content-Type: application/json\r\n\r\n".encode() + body

    async def send(self, message: bytes) -> Response:
        """Send a request over an idle connection, or over a new one.

        Raises:
            OSError: The server cannot be reached, or it closed the connection.
            LoraFtError: The server does not speak HTTP.
        """
        while self._idle:
            connection = self._idle.pop()
            if not connection.open:
                continue
            try:
                return await self._exchange(connection, message)
            except ConnectionError:
                if connection.started:
                    raise
        context = ssl.create_default_context() if self._secure else None
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=context)
        return await self._exchange(connection, message)

    async def _exchange(self, connection: Connection, message: bytes) -> Response:
        response = await connection.exchange(message)
        if connection.open:
            self._idle.append(connection)
        return response

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

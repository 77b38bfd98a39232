"""HTTP/1.1 by uvicorn and h11, with the limits that uvicorn lacks: on connections, slow heads and slow readers.

A client that sends the head of a request byte by byte ("slow loris") would hold a connection for ever. A timer runs
from a connection's first moment, or from the first byte of its next request, until the head is complete. A client that
does not read its answer would hold one, too. Another timer runs while unread bytes wait here.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lora_ft.serving.errors import RequestError
from lora_ft.serving.limits import Limits


class LimitedProtocol(H11Protocol):
    """One connection. `protocol_of` sets the limits."""

    limits = Limits()
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1)  # unread bytes start the timer; 0 would stop TLS with none
        if len(self.connections) > self.limits.connections:
            self._refuse("too many connections are open", "retry in a few seconds", 503, "too_many_connections")
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is None and not self._answering:
            self._start_timer()
        super().data_received(data)
        if self._answering:
            self._stop_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not HTTP, in OpenAI's form."""
        most = self.limits.header_bytes
        self._refuse(f"the request is malformed, or its head exceeds {most:,} bytes", "correct it", 400, "invalid_http")

    @property
    def _answering(self) -> bool:
        """True from the end of a request's head until the end of its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def _start_timer(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(self.limits.header_seconds, self._expire)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _expire(self) -> None:
        seconds = self.limits.header_seconds
        self._refuse(f"the request is too slow (more than {seconds:g} s)", "send it at once", 408, "request_timeout")

    def _refuse(self, message: str, remedy: str, status: int, code: str) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        body = json.dumps(RequestError(message, remedy, status=status, code=code).body()).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        try:
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # an answer has begun
            pass
        self.transport.close()


def protocol_of(limits: Limits) -> type[LimitedProtocol]:
    """Return the protocol with these limits."""
    attributes: dict[str, Any] = {"limits": limits}
    return type("LimitedProtocol", (LimitedProtocol,), attributes)

"""The end of a server: newcomers are refused, and the requests at work get some seconds to finish."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from lora_ft.serving.errors import RequestError


class Drain:
    """Counts the requests at work.

    Attributes:
        closing: True once newcomers are refused.
        running: Number of requests at work.
    """

    def __init__(self) -> None:
        self.closing, self.running = False, 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while it is at work."""
        self.running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    def require_open(self) -> None:
        """Raise RequestError if newcomers are refused (status 503)."""
        if self.closing:
            raise RequestError(
                "the server is shutting down",
                "retry in a few seconds",
                status=503,
                code="shutting_down",
                headers={"Retry-After": "1", "Connection": "close"},
            )

    async def wait(self, seconds: float) -> bool:
        """Refuse newcomers, and wait at most `seconds` for the others; return True if all have finished."""
        self.closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        return not self.running

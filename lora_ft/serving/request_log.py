"""One JSON line on stderr for each request. It holds no text of a request or an answer unless that is asked for."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from lora_ft.serving.request_record import RequestRecord

_QUIET = ("/health/live", "/health/ready", "/metrics")  # asked every few seconds; only failures are logged


class RequestLog:
    """Writes log lines.

    Args:
        texts: Log prompts and answers, too.
        stream: File to write to. Default: stderr.
    """

    def __init__(self, *, texts: bool = False, stream: TextIO | None = None) -> None:
        self.texts, self._stream, self._lock = texts, stream, threading.Lock()

    def event(self, name: str, **fields: Any) -> None:
        """Log an event of the server, such as a reload."""
        self._write({"event": name, **fields})

    def failure(self, name: str, error: BaseException, **fields: Any) -> None:
        """Log an unexpected exception with its place in the code. Its message may quote a text, so it is left out."""
        frames = [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
        ]
        self.event(name, error=type(error).__name__, frames=frames[-20:], **fields)

    def request(self, record: RequestRecord) -> None:
        """Log a finished request."""
        if record.path in _QUIET and record.status < 400:
            return
        line: dict[str, Any] = {
            "event": "request",
            "request_id": record.id,
            "method": record.method,
            "path": record.path,
            "status": record.status,
            "model": record.model,
            "stream": record.stream,
            "rows": record.rows,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.new_tokens,
            "first_token_seconds": _rounded(record.first_token),
            "seconds": _rounded(record.seconds),
            "finish": record.finishes,
        }
        notes = {"error": record.code, "reason": record.reason, "user": record.user}
        line |= {name: value for name, value in notes.items() if value}
        if self.texts:
            line |= {"prompts": record.prompts, "answers": record.answers}
        self._write(line)

    def _write(self, fields: dict[str, Any]) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": time, **fields})  # ASCII, so that no text breaks a line or a terminal
        # the reader of a pipe may have gone; the server must answer, and end on SIGTERM, without a log
        with self._lock, contextlib.suppress(OSError, ValueError):
            print(line, file=self._stream or sys.stderr, flush=True)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)

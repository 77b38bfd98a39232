"""`lora-ft serve` in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai

from tests.lora_ft.serving.conftest import wait_for


@dataclass
class ServerProcess:
    """A running server.

    Attributes:
        process: The process.
        lines: Lines of its stderr so far.
    """

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Address, once requests are answered."""
        events = wait_for(lambda: self.events("listening") or self.process.poll() is not None, 120)
        assert events is not True, "".join(self.lines)
        return str(events[0]["url"])

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log lines of an event."""
        parsed = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [line for line in parsed if line["event"] == name]

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60)


@contextlib.contextmanager
def server_process(*arguments: str, interpreter: str = sys.executable, **environment: str) -> Iterator[ServerProcess]:
    """Start a server on a free port, and stop it at the end."""
    command = [interpreter, "-m", "lora_ft", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    server = ServerProcess(process)

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            server.lines.append(line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield server
    finally:
        if process.poll() is None:
            server.signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        reader.join()

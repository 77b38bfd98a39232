"""An OpenAI-compatible API in a thread, whose replies the tests choose."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from openai.types.chat import ChatCompletion

Answer = str | tuple[int, dict[str, str]] | dict[str, Any] | bytes
"""Text of the message; status and headers of an error; other fields of the choice; or the body itself."""


@dataclass
class JudgeServer:
    """A running server.

    Attributes:
        answer: Returns the answer to a prompt.
        requests: Path, headers and body of each request.
        url: Address up to /v1.
    """

    answer: Callable[[str], Answer]
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for _, _, body in self.requests]


def completion(**choice: Any) -> bytes:
    """Return a reply as OpenAI's own type writes it."""
    message = {"role": "assistant", "content": choice.pop("content", None), "refusal": choice.pop("refusal", None)}
    choices = [{"index": 0, "finish_reason": "stop", "logprobs": None, "message": message} | choice]
    content = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}
    return ChatCompletion.model_validate(content).model_dump_json().encode()


@contextlib.contextmanager
def judge_server(answer: Callable[[str], Answer]) -> Iterator[JudgeServer]:
    """Serve on a free port until the end of the block."""
    state = JudgeServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append((self.path, dict(self.headers), body))
            reply = state.answer(body["messages"][0]["content"])
            status, headers = reply if isinstance(reply, tuple) else (200, {})
            if isinstance(reply, tuple):
                content = json.dumps({"error": {"message": f"status {status}", "type": "error"}}).encode()
            elif isinstance(reply, bytes):
                content = reply
            else:
                content = completion(**({"content": reply} if isinstance(reply, str) else reply))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *values: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""Ask a model behind an OpenAI-compatible API, with retries, and without paying for the same request twice.

Replies are stored in lora-ft's cache folder under the hash of address and request, so that an evaluation that is
repeated, or was interrupted, sends only what it has no reply to. The requests themselves are not stored.
"""

from __future__ import annotations

import email.message
import hashlib
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from lora_ft.core.errors import LoraFtError, UsageError, first_line
from lora_ft.core.files import read_json, write_json
from lora_ft.models.bases import cache_folder
from lora_ft.tasks.judge import Judge

_TRIES = 6
_LONGEST_WAIT = 60.0  # seconds between two tries
_LONGEST_REPLY = 1 << 22  # bytes
_BUSY = (408, 409, 425, 429)  # and all from 500 on
_sleep = time.sleep


@dataclass(frozen=True)
class Reply:
    """A reply of the judge.

    Attributes:
        text: Content of the message.
        refused: The model or a filter refused to answer.
        cut: The reply ended at a length limit.
    """

    text: str
    refused: bool = False
    cut: bool = False


class JudgeClient:
    """A judge at its address.

    Args:
        judge: Settings of the task.
        key: API key, or None.
    """

    def __init__(self, judge: Judge, key: str | None) -> None:
        self._judge, self._key = judge, key
        self._address = f"{judge.url}/chat/completions"
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ask(self, prompts: Sequence[str]) -> list[Reply]:
        """Return the reply to each prompt.

        Raises:
            UsageError: The address, the model or the key is refused.
            LoraFtError: The judge does not answer, or answers with something else than the API's JSON.
        """
        failed = threading.Event()

        def reply(prompt: str) -> Reply:
            if failed.is_set():
                raise CancelledError
            try:
                return self._reply(prompt)
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(self._judge.concurrency) as executor:
            futures = [executor.submit(reply, prompt) for prompt in prompts]
            try:
                return [future.result() for future in futures]
            except BaseException:
                failed.set()
                raise

    def _reply(self, prompt: str) -> Reply:
        messages = [{"role": "user", "content": prompt}]
        body = json.dumps({"model": self._judge.model, "messages": messages, "temperature": 0}).encode()
        digest = hashlib.sha256(self._address.encode() + b"\n" + body).hexdigest()
        path = cache_folder() / "judge" / digest[:2] / f"{digest}.json"
        if (stored := _stored(path)) is not None:
            return stored
        reply = self._send(body)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(reply))
        return reply

    def _send(self, body: bytes) -> Reply:
        """Send a request until it is answered; too many requests and failures of the server are repeated."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        reason = ""
        for attempt in range(_TRIES):
            request = urllib.request.Request(self._address, body, headers)
            wait = random.uniform(0.5, 1.0) * 2**attempt
            try:
                with self._opener.open(request, timeout=self._judge.timeout) as response:
                    return self._read(response.read(_LONGEST_REPLY))
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {_message(error)}"
                if error.code not in _BUSY and error.code < 500:
                    raise self._refusal(error.code, reason) from error
                wait = max(wait, _retry_after(error.headers))
            except (OSError, http.client.HTTPException) as error:  # no connection, a time-out, a broken reply
                reason = first_line(error)
            if attempt + 1 < _TRIES:
                _sleep(min(wait, _LONGEST_WAIT))
        raise LoraFtError(
            f"the judge at {self._judge.url} does not answer ({reason})",
            "evaluate again later; the replies received so far are kept",
        )

    def _refusal(self, status: int, reason: str) -> UsageError:
        variable = self._judge.key_variable
        key = f"check the key in {variable}" if variable else "name the variable with your key in key_variable"
        remedy = key if status in (401, 403) else "check url, model and prompt of evaluate.judge"
        return UsageError(f"the judge at {self._judge.url} refused the request ({reason})", remedy)

    def _read(self, content: bytes) -> Reply:
        try:
            choice = json.loads(content)["choices"][0]
            message = choice["message"]
            text, refusal = message.get("content") or "", message.get("refusal")
            if not isinstance(text, str):
                raise TypeError(f"content is a {type(text).__name__}")
            finish = choice.get("finish_reason")
            return Reply(str(refusal or text), bool(refusal) or finish == "content_filter", finish == "length")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise LoraFtError(
                f"the judge at {self._judge.url} does not speak OpenAI's API ({first_line(error)})",
                "end evaluate.judge.url with /v1",
            ) from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects are errors, since the key and the rows would go to an address that the task does not name."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


def _stored(path: Path) -> Reply | None:
    """Return a reply from the cache, or None if there is none that can be read."""
    try:
        content = read_json(path)
        return Reply(str(content["text"]), bool(content["refused"]), bool(content["cut"]))
    except (LoraFtError, KeyError):
        return None


def _message(error: urllib.error.HTTPError) -> str:
    """Return the message of an error as OpenAI's API writes it, or the status in words."""
    try:
        return first_line(ValueError(json.loads(error.read(_LONGEST_REPLY))["error"]["message"]))[:300]
    except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException):
        return str(error.reason)


def _retry_after(headers: email.message.Message) -> float:
    try:
        return float(headers.get("Retry-After") or 0)
    except ValueError:  # a date
        return 0.0

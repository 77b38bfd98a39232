"""The body of a request, read within limits of size and time, as JSON."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from starlette.types import Receive

from lora_ft.core.errors import LoraFtError
from lora_ft.core.json_limits import parse_json
from lora_ft.serving.errors import RequestError
from lora_ft.serving.limits import Limits

_DISCARDED = 8  # times the maximum size, read and thrown away so that the client can read the answer
_DISCARD_SECONDS = 2.0


class ClientGone(Exception):
    """The client closed the connection."""


async def read_json(headers: Mapping[str, str], receive: Receive, limits: Limits) -> Any:
    """Return the JSON value of a body.

    Args:
        headers: Headers of the request.
        receive: Next message of the request.
        limits: Limits of the server.

    Raises:
        RequestError: The body is too large, too slow, not JSON or not UTF-8, or is declared as another type.
        ClientGone: The client closed the connection.
    """
    _check_type(headers)
    declared = headers.get("content-length", "0")
    size = int(declared) if declared.isdecimal() else 0  # the HTTP parser has refused malformed lengths
    if size > limits.body_bytes:
        if "expect" not in headers:  # that client waits for permission to send
            await _discard(receive, limits.body_bytes * _DISCARDED)
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_seconds):
            body = await _read(receive, limits)
    except TimeoutError as error:
        raise too_slow(limits) from error
    if not body:
        raise RequestError("the body is empty", "send a JSON object", code="invalid_json")
    try:
        return parse_json(body, "the body")
    except LoraFtError as error:
        raise RequestError(error.message, "send a JSON object in UTF-8", code="invalid_json") from error


def _check_type(headers: Mapping[str, str]) -> None:
    kind, *parameters = headers.get("content-type", "").lower().split(";")
    values = {name.strip(): value.strip().strip('"') for name, _, value in (each.partition("=") for each in parameters)}
    if kind.strip() != "application/json" or values.get("charset", "utf-8") not in ("utf-8", "utf8"):
        raise RequestError(
            f"the content type is not JSON (got {headers.get('content-type', 'none')[:80]!r})",
            "send the header `Content-Type: application/json`",
            status=415,
            code="unsupported_media_type",
        )
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(
            "compressed bodies are not supported", "send the body as it is", status=415, code="unsupported_encoding"
        )


async def _read(receive: Receive, limits: Limits) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > limits.body_bytes:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return bytes(body)


async def _discard(receive: Receive, size: int) -> None:
    """Read at most `size` bytes, since a connection closed with unread bytes may lose the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            while size > 0:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                if not message.get("more_body", False):
                    return
                size -= len(message.get("body", b""))


def too_slow(limits: Limits) -> RequestError:
    """Return the error of a body that did not arrive in time."""
    return RequestError(
        f"the body is too slow (more than {limits.body_seconds:g} s)",
        "send it at once",
        status=408,
        code="request_timeout",
        headers={"Connection": "close"},
    )


def _too_large(limits: Limits) -> RequestError:
    return RequestError(
        f"the body is too large (at most {limits.body_bytes:,} bytes)",
        "send fewer or shorter rows",
        status=413,
        code="request_too_large",
        headers={"Connection": "close"},
    )

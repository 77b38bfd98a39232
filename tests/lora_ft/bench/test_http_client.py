"""The client against a server that sends given bytes in pieces of any size."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.bench.http_client import HttpClient, Response
from lora_ft.core.errors import LoraFtError, UsageError

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
    b"9\r\ndata: a\n\n\r\nA;x=y\r\ndata: \r\nb\n\r\n0\r\n\r\n"
)
PLAIN = b"HTTP/1.1 429 Too Many Requests\r\nCONTENT-LENGTH: 5\r\n\r\nhello"
CLOSED = b"HTTP/1.1 200 OK\r\n\r\nuntil the end"


def exchanged(
    replies: Sequence[Sequence[bytes]], ask: Callable[[HttpClient], Coroutine[Any, Any, Any]], *, close: bool = False
) -> tuple[Any, int]:
    """Return the result of `ask` and the number of connections; the server sends one list of pieces per request."""

    async def main() -> tuple[Any, int]:
        remaining, connections = list(replies), 0

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            try:
                while remaining:
                    head = await reader.readuntil(b"\r\n\r\n")
                    await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
                    for piece in remaining.pop(0):
                        writer.write(piece)
                        await writer.drain()
                        await asyncio.sleep(0)
                    if close:
                        break
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            writer.close()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            client = HttpClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            try:
                return await ask(client), connections
            finally:
                client.close()

    return asyncio.run(main())


async def once(client: HttpClient) -> Response:
    return await client.send(client.message("POST", "/v1/completions", b"{}"))


@given(st.sets(st.integers(1, len(CHUNKED) - 1), max_size=8))
def test_chunks_are_the_same_however_they_are_split(cuts: set[int]) -> None:
    places = [0, *sorted(cuts), len(CHUNKED)]
    pieces = [CHUNKED[start:end] for start, end in pairwise(places)]
    response, _ = exchanged([pieces], once)
    assert [piece for _, piece in response.pieces] == [b"data: a\n\n", b"data: \r\nb\n"]
    times = [time for time, _ in response.pieces]
    assert times == sorted(times) and response.end >= times[-1]


def test_a_body_of_known_length_ends_without_closing() -> None:
    response, _ = exchanged([[PLAIN]], once)
    assert (response.status, response.body) == (429, b"hello")


def test_a_body_without_length_lasts_until_the_connection_closes() -> None:
    response, _ = exchanged([[CLOSED]], once, close=True)
    assert response.body == b"until the end"


def test_a_connection_is_reused() -> None:
    async def twice(client: HttpClient) -> list[Response]:
        return [await once(client), await once(client)]

    responses, connections = exchanged([[CHUNKED], [PLAIN]], twice)
    assert [response.status for response in responses] == [200, 429]
    assert connections == 1


def test_an_idle_connection_that_the_server_closed_is_replaced() -> None:
    async def twice(client: HttpClient) -> list[Response]:
        return [await once(client), await once(client)]

    responses, connections = exchanged([[PLAIN], [PLAIN]], twice, close=True)
    assert len(responses) == connections == 2


def test_concurrent_requests_have_connections_of_their_own() -> None:
    async def both(client: HttpClient) -> list[Response]:
        return await asyncio.gather(once(client), once(client))

    responses, connections = exchanged([[CHUNKED], [CHUNKED]], both)
    assert connections == 2 and responses[0].body == responses[1].body


def test_a_connection_that_ends_early_is_an_error() -> None:
    with pytest.raises(ConnectionError):
        exchanged([[CHUNKED[:-4]]], once, close=True)


def test_bytes_that_are_not_http_are_an_error() -> None:
    with pytest.raises(LoraFtError, match="no valid HTTP"):
        exchanged([[b"SSH-2.0-x\r\n\r\n"]], once)


def test_a_cancelled_request_closes_its_connection() -> None:
    async def cancelled(client: HttpClient) -> bool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await once(client)
        return not client._idle

    unused, _ = exchanged([[b"HTTP/1.1 200 OK\r\n"], [PLAIN]], cancelled)
    assert unused


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        HttpClient(url)


def test_the_key_and_the_path_of_the_address_are_sent() -> None:
    message = HttpClient("http://host:8000/prefix/v1", "secret").message("POST", "/v1/completions", b"{}")
    assert message.startswith(b"POST /prefix/v1/completions HTTP/1.1\r\nHost: host:8000\r\n")
    assert b"Authorization: Bearer secret\r\n" in message and message.endswith(
        b"Content-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
    )

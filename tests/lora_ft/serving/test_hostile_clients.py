"""Clients that send too much, too slowly or nonsense are refused within the limits, and others do not notice."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_ft.serving.limits import Limits
from tests.lora_ft.serving.conftest import Running, serving, wait_for
from tests.lora_ft.serving.fake_engine import FakeEngine

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/generate")
SMALL = Limits(
    body_bytes=2000, header_bytes=4096, header_seconds=0.3, body_seconds=0.3, connections=20, seconds=5, rows=4
)


@pytest.fixture
def small(engine: FakeEngine) -> Iterator[Running]:
    with serving({"echo": engine}, SMALL) as running:
        yield running


def connect(running: Running) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Read until the server closes the connection; return status and error."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def works(running: Running) -> bool:
    return running.post("/v1/completions", model="echo", prompt="ab").json()["choices"][0]["text"] == "ba"


def head(path: str = "/v1/completions", **headers: str) -> bytes:
    fields = {"Host": "x", "Content-Type": "application/json", "Connection": "close", **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode()


def test_a_head_that_never_ends_is_refused_in_time(small: Running) -> None:
    with connect(small) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        status, error = answer(connection)
    assert (status, error["code"]) == (408, "request_timeout")
    assert works(small)


def test_a_connection_without_a_request_is_closed(small: Running) -> None:
    with connect(small) as connection:
        assert answer(connection)[0] == 408


def test_a_second_head_that_never_ends_is_refused_too(small: Running) -> None:
    with connect(small) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in connection.recv(65536)
        connection.sendall(b"GET /health/live HTTP/1.1\r\nX: ")
        assert answer(connection)[0] == 408


def test_a_body_that_never_ends_is_refused_in_time(small: Running) -> None:
    with connect(small) as connection:
        connection.sendall(head(Content_Length="100") + b'{"model": ')
        status, error = answer(connection)
    assert (status, error["code"]) == (408, "request_timeout")


@pytest.mark.parametrize("sent", [b"", b'{"model": "echo", '])
def test_a_client_that_leaves_within_its_body_is_forgotten(small: Running, sent: bytes) -> None:
    with connect(small) as connection:
        connection.sendall(head(Content_Length="100") + sent)
    (line,) = wait_for(small.requests)
    assert (line["status"], line["error"]) == (499, "client_gone")


@pytest.mark.parametrize(
    "headers",
    [
        b"".join(b"X-%d: %s\r\n" % (number, b"v" * 50) for number in range(500)),
        b"X-Long: " + b"v" * 100_000 + b"\r\n",
    ],
)
def test_header_floods_are_refused(small: Running, headers: bytes) -> None:
    with connect(small) as connection:
        try:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
            status, error = answer(connection)
        except ConnectionError:  # closed before everything was sent
            status, error = 431, {"code": "invalid_http"}
    assert status in (400, 431)
    assert error["code"] == "invalid_http"
    assert works(small)


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/x\r\n\r\n"])
def test_what_is_not_http_is_refused(small: Running, sent: bytes) -> None:
    with connect(small) as connection:
        connection.sendall(sent)
        assert answer(connection)[0] in (400, 408)


def test_a_large_body_is_refused_by_its_declared_size(small: Running) -> None:
    response = small.post("/v1/completions", model="echo", prompt="a" * 3000)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    with connect(small) as connection:
        connection.sendall(head(Content_Length=str(10**12), Expect="100-continue"))
        assert answer(connection)[0] == 413
    assert works(small)


def test_a_large_body_is_refused_while_it_arrives(small: Running) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 100

    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{small.url}/v1/completions", content=chunks(), headers=headers)
    assert response.status_code == 413


def test_more_connections_than_allowed_are_refused(small: Running) -> None:
    connections = [connect(small) for _ in range(SMALL.connections)]
    try:
        with connect(small) as another:
            assert answer(another)[0] == 503
    finally:
        for connection in connections:
            connection.close()
    wait_for(lambda: works(small))


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", {}, 400, "invalid_json"),
        (b"{", {}, 400, "invalid_json"),
        (b"[1]", {}, 400, "invalid_type"),
        (b'{"model": "\xff"}', {}, 400, "invalid_json"),
        (b'{"model": "\\ud800"}', {}, 400, "invalid_json"),
        (b'{"model": "a", "model": "b"}', {}, 400, "invalid_json"),
        (b"[" * 1900, {}, 400, "invalid_json"),
        (b'{"seed": ' + b"1" * 1900 + b"}", {}, 400, "invalid_json"),
        (b'{"temperature": NaN, "model": "echo", "prompt": "a"}', {}, 400, "invalid_type"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (b"{}", {"Content-Type": "application/json; charset=latin-1"}, 415, "unsupported_media_type"),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "unsupported_encoding"),
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_bodies_that_are_no_json_object(
    small: Running, path: str, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    if b"NaN" in content and path != "/v1/completions":
        return
    sent = {"Content-Type": "application/json", **headers}
    response = httpx.post(f"{small.url}{path}", content=content, headers=sent)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_parameters_of_a_content_type_are_allowed(small: Running) -> None:
    for kind in ("application/json; profile=x; charset=UTF-8", 'Application/JSON;charset="utf-8"'):
        response = httpx.post(f"{small.url}/v1/generate", content=b"{}", headers={"Content-Type": kind})
        assert response.json()["error"]["code"] == "missing_field"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=8,
)
NAMES = (
    "model prompt messages rows n stop stream stream_options logprobs seed temperature num_beams labels raw "
    "label_scores max_new_tokens max_tokens top_p bad_words_ids allowed"
)
BODIES = st.dictionaries(st.sampled_from(NAMES.split()) | st.text(max_size=8), VALUES, max_size=5).map(
    lambda fields: json.dumps({"model": "echo", "prompt": "ab", **fields}).encode()
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=60) | BODIES)
def test_no_body_is_a_500(small: Running, path: str, body: bytes) -> None:
    response = httpx.post(f"{small.url}{path}", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200 or 400 <= response.status_code < 500
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_client_that_reads_nothing_is_cut_off(engine: FakeEngine) -> None:
    limits = Limits(write_seconds=0.3, new_tokens=100_000, rows=64, seconds=30)
    with serving({"echo": engine}, limits) as running:
        body = json.dumps({"model": "echo", "prompt": ["a" * 60] * 64, "stream": True, "n": 1, "logprobs": 0}).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = running.url.removeprefix("http://").split(":")
            connection.connect((host, int(port)))
            request = head(Content_Length=str(len(body))) + body
            connection.sendall(request * 50)  # pipelined, until the buffers of both sides are full
            wait_for(lambda: any(line["status"] == 499 for line in running.requests()), 30)
        wait_for(lambda: not engine.running)
        assert works(running)

"""The ASGI application: routes, authentication, request ids, one log line a request, and errors in one form."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_ft.serving.bank_watch import BankWatch
from lora_ft.serving.body import ClientGone
from lora_ft.serving.drain import Drain
from lora_ft.serving.endpoints import Endpoints
from lora_ft.serving.errors import RequestError, internal_error
from lora_ft.serving.keys import ApiKeys
from lora_ft.serving.limits import Limits
from lora_ft.serving.metrics import CONTENT_TYPE, Metrics
from lora_ft.serving.openapi import document
from lora_ft.serving.page import PAGE, POLICY
from lora_ft.serving.registry import Registry
from lora_ft.serving.request_log import RequestLog
from lora_ft.serving.request_record import CLIENT_GONE, RequestRecord, request_id

_PROTECTED = "/v1/"
_SPARE_SECONDS = 10.0  # after a request's deadline, for sending its answer


@dataclass
class Service:
    """One process of the server.

    Attributes:
        registry: Models.
        limits: Limits of a request.
        keys: API keys; none admits everyone.
        log: Log.
        metrics: Metrics.
        drain: Requests at work.
        banks: The models with the adapters of now.
    """

    registry: Registry
    limits: Limits = field(default_factory=Limits)
    keys: ApiKeys = field(default_factory=lambda: ApiKeys([]))
    log: RequestLog = field(default_factory=RequestLog)
    metrics: Metrics = field(default_factory=Metrics)
    drain: Drain = field(default_factory=Drain)
    banks: BankWatch = field(init=False)

    def __post_init__(self) -> None:
        self.banks = BankWatch(self.registry, self.log)


def application(
    service: Service, lifespan: Callable[[Any], contextlib.AbstractAsyncContextManager[None]] | None = None
) -> ASGIApp:
    """Return the application.

    Args:
        service: Models and settings.
        lifespan: Context in which the application runs.
    """
    endpoints = Endpoints(service.banks, service.limits)
    information = _Information(service)
    routes = [
        Route("/v1/completions", endpoints.completions, methods=["POST"]),
        Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        Route("/v1/generate", endpoints.generate, methods=["POST"]),
        Route("/v1/models", information.models, methods=["GET"]),
        Route("/v1/models/{model:path}", information.model, methods=["GET"]),
        Route("/health/live", information.live, methods=["GET"]),
        Route("/health/ready", information.ready, methods=["GET"]),
        Route("/metrics", information.metrics, methods=["GET"]),
        Route("/openapi.json", information.openapi, methods=["GET"]),
        Route("/", information.page, methods=["GET"]),
    ]
    router = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={
            RequestError: _refuse,
            HTTPException: _refuse_route,
            ClientGone: _give_up,
            Exception: _fail,
        },
    )
    router.router.redirect_slashes = False
    return _Middleware(router, service, [route.path for route in routes])


class _Middleware:
    """The steps before and after every endpoint: limits, keys, metrics, log."""

    def __init__(self, router: ASGIApp, service: Service, paths: list[str]) -> None:
        self._router, self._service, self._paths = router, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord(request_id(headers.get("x-request-id")), scope["method"], self._route_of(scope["path"]))
        scope.setdefault("state", {})["record"] = record

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = record.id
            await send(message)

        with self._service.drain.request():
            try:
                await self._answer(scope, receive, send_marked, headers)
            except TimeoutError:  # uvicorn closes the connection, since the answer is incomplete
                record.status, record.code = CLIENT_GONE, "client_stalled"
            except asyncio.CancelledError:
                record.status, record.code = 503, "shutting_down"
                raise
            except Exception as error:
                self._service.log.failure("failure", error, request_id=record.id, path=record.path)
                record.status, record.code = 500, "internal_error"
            finally:
                self._close(record)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        try:
            _check_head(headers, self._service.limits)
            if scope["path"].startswith(_PROTECTED):
                self._service.keys.require(headers.get("authorization"))
                self._service.drain.require_open()
        except RequestError as error:
            record: RequestRecord = scope["state"]["record"]
            record.refuse(error)
            await _send_error(error, scope, receive, send)
            return
        limit = self._service.limits
        async with asyncio.timeout(limit.body_seconds + limit.seconds + _SPARE_SECONDS):  # a client that reads nothing
            await self._router(scope, receive, send)

    def _route_of(self, path: str) -> str:
        if path in self._paths:
            return path
        return "/v1/models/{model}" if path.startswith("/v1/models/") else ""

    def _close(self, record: RequestRecord) -> None:
        record.end()
        self._service.metrics.finished(record, self._service.registry.serves(record.model))
        self._service.log.request(record)


def _check_head(headers: Headers, limits: Limits) -> None:
    """Raise RequestError if a head is too large. The parser refuses only those that arrive in several pieces."""
    if sum(len(name) + len(value) for name, value in headers.raw) > limits.header_bytes:
        raise RequestError(
            f"the head of the request exceeds {limits.header_bytes:,} bytes",
            "send fewer or shorter headers",
            status=431,
            code="invalid_http",
            headers={"Connection": "close"},
        )


class _Information:
    """Endpoints that tell about the server."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        await self._service.banks.look()
        return JSONResponse({"object": "list", "data": self._service.registry.listed()})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        model = await self._service.banks.find(request.path_params["model"])
        return JSONResponse(self._service.registry.entry(model))

    async def live(self, request: Request) -> Response:
        """GET /health/live: 503 if the process should be started again."""
        failed = [name for name, engine in self._service.registry.engines.items() if engine.failed]
        return JSONResponse({"status": "failed" if failed else "live", "failed": failed}, 503 if failed else 200)

    async def ready(self, request: Request) -> Response:
        """GET /health/ready: 503 if no requests should be sent."""
        failed = any(engine.failed for engine in self._service.registry.engines.values())
        status = "shutting down" if self._service.drain.closing else "failed" if failed else "ready"
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        self._service.metrics.sync(self._service.registry.engines)
        return Response(self._service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(document(self._service.limits, keys=bool(self._service.keys)))

    async def page(self, request: Request) -> Response:
        """GET /."""
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"})


def _error_response(error: RequestError) -> Response:
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _send_error(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    await _error_response(error)(scope, receive, send)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    request.state.record.refuse(error)
    return _error_response(error)


async def _give_up(request: Request, error: Exception) -> Response:
    request.state.record.code = "client_gone"
    return Response(status_code=CLIENT_GONE)  # for the log; nobody receives it


async def _fail(request: Request, error: Exception) -> Response:
    """Answer with status 500; Starlette raises the exception again, and it is logged."""
    return _error_response(internal_error())


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    missing = error.status_code == 404
    path = f"{request.url.path[:80]!r}"
    refused = RequestError(
        f"path {path} does not exist" if missing else f"{request.method} is not supported for {path}",
        "GET /openapi.json lists the endpoints",
        status=error.status_code,
        code="not_found" if missing else "method_not_allowed",
        headers=error.headers,
    )
    request.state.record.refuse(refused)
    return _error_response(refused)

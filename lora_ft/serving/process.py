"""One process of the server: it loads the bundles, answers requests, and drains when it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from lora_ft.core.errors import UsageError
from lora_ft.models.async_model import AsyncModel
from lora_ft.serving.app import Service, application
from lora_ft.serving.http_protocol import protocol_of
from lora_ft.serving.keys import ApiKeys
from lora_ft.serving.limits import Limits
from lora_ft.serving.registry import Registry
from lora_ft.serving.reloader import Reloader
from lora_ft.serving.request_log import RequestLog

_LAST_SECONDS = 2  # for answers that end with an error when the grace is over


@dataclass(frozen=True)
class EngineSettings:
    """Settings of the engines that run bundles.

    Attributes:
        provider: Execution provider: cpu, cuda or auto.
        threads: Threads of a process. Default: the cores that this process may use.
        max_rows: Rows that run together. Default: the engine's.
        memory: Maximum memory of a bundle's cache pool, in bytes. Default: the engine's.
        max_queue: Requests that may wait. Default: the engine's.
    """

    provider: str = "auto"
    threads: int | None = None
    max_rows: int | None = None
    memory: int | None = None
    max_queue: int | None = None


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the server.

    Attributes:
        bundles: Folders of bundles and banks, by name.
        host, port: Address to listen at; port 0 is any free one.
        workers: Number of processes.
        grace: Time for requests at work after SIGTERM, in seconds.
        keys_file: File with API keys, one a line.
        ssl_certfile, ssl_keyfile: Certificate and private key for TLS, as PEM files.
        log_texts: Log prompts and answers.
        engine: How bundles run.
        limits: Limits of a request.
    """

    bundles: Mapping[str, Path]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    grace: float = 30.0
    keys_file: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    log_texts: bool = False
    engine: EngineSettings = field(default_factory=EngineSettings)
    limits: Limits = field(default_factory=Limits)

    def read_keys(self) -> ApiKeys:
        """Return the API keys of now; see `ApiKeys.read`."""
        return ApiKeys.read(self.keys_file)


def run_process(
    settings: ServerSettings, listener: socket.socket, started: Callable[[], None], *, parent: int | None = None
) -> None:
    """Answer requests until a signal ends the process.

    Args:
        settings: Settings of the server.
        listener: Bound socket.
        started: Called once requests are answered.
        parent: Process that started this one as a worker, which ends with it.

    Raises:
        UsageError, LoraFtError: A bundle, the keys or the certificate cannot be loaded.
    """
    early: list[int] = []  # signals while bundles load; SIGHUP would end the process
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda number, _: early.append(number))
    log = RequestLog(texts=settings.log_texts)
    _raise_file_limit()
    keys = settings.read_keys()
    engines = {name: _load(folder, settings.engine) for name, folder in settings.bundles.items()}
    service = Service(Registry(engines), settings.limits, keys, log)
    reloader = Reloader(service, settings.read_keys)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: reloader.request())
    if early:
        reloader.request()
    server = DrainingServer(_uvicorn(settings, service, reloader), service, settings.grace, started)
    server.parent = parent
    server.run([listener])


def _raise_file_limit() -> None:
    """Allow as many open files as the system permits: each connection is one, and each adapter that is mapped."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _load(folder: Path, settings: EngineSettings) -> AsyncModel:
    return AsyncModel.load(
        folder,
        provider=settings.provider,
        threads=settings.threads,
        max_rows=settings.max_rows,
        memory=settings.memory,
        max_queue=settings.max_queue,
    )


def _uvicorn(settings: ServerSettings, service: Service, reloader: Reloader) -> uvicorn.Config:
    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        watching = asyncio.create_task(reloader.run())
        yield
        watching.cancel()
        await close_engines(service)

    config = uvicorn.Config(
        application(service, lifespan),
        loop="asyncio",  # the loop that tests and measurements used, also where uvloop is installed
        http=protocol_of(settings.limits),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",  # the server's own log has one line for every request
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=settings.limits.header_bytes,
        timeout_graceful_shutdown=_LAST_SECONDS,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(
            f"the certificate cannot be loaded ({error})", "give PEM files that belong together"
        ) from error
    return config


async def close_engines(service: Service) -> None:
    """Cancel what is left, and stop the engines."""
    engines = service.registry.engines.values()
    await asyncio.gather(*(engine.close() for engine in engines), return_exceptions=True)


class DrainingServer(uvicorn.Server):
    """A uvicorn that finishes its requests before it closes its sockets.

    The first SIGTERM or SIGINT refuses newcomers with 503 and lets the others finish, at most `grace` seconds. Those
    that are left then end with an error. A second signal ends at once.

    Args:
        config: Configuration.
        service: Models, and the requests at work.
        grace: Time for requests at work, in seconds.
        on_start: Called once requests are answered.

    Attributes:
        parent: Process without which this one drains, too; None for a server of one process.
    """

    def __init__(self, config: uvicorn.Config, service: Service, grace: float, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._grace, self._on_start = service, grace, on_start
        self._signals = 0
        self.parent: int | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal; `on_tick` acts on it, since this may run between any two instructions."""
        self._signals += 1
        if self._signals > 1:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        orphaned = self.parent is not None and os.getppid() != self.parent
        if (self._signals or orphaned) and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        service = self._service
        service.log.event("draining", running=service.drain.running, grace=self._grace)
        if not await service.drain.wait(self._grace):
            service.log.event("grace_over", running=service.drain.running)
            await close_engines(service)
            await service.drain.wait(_LAST_SECONDS)
        self.should_exit = True

"""Reloads what changes while a server runs: the adapters of a bank, and the API keys.

A bank's manifest is replaced as a whole when `lora-ft bank add` or `remove` has finished, so its file's status tells
when to read it again. SIGHUP reads manifests and keys again in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from lora_ft.core.errors import LoraFtError
from lora_ft.export.runtime.manifest import NAME
from lora_ft.serving.app import Service
from lora_ft.serving.keys import ApiKeys

if TYPE_CHECKING:
    from lora_ft.models.async_model import AsyncModel

_EVERY = 0.25  # seconds; an adapter that was added answers within a second
_SYNC = 4  # rounds between two copies of the engines' totals, for the metrics of several processes

FileStatus = tuple[int, int, int] | None


class Reloader:
    """Watches manifests.

    Args:
        service: Models and keys of the process.
        read_keys: Returns the API keys of now.
    """

    def __init__(self, service: Service, read_keys: Callable[[], ApiKeys]) -> None:
        self._service, self._read_keys, self._requested = service, read_keys, False
        self._statuses = {name: _status(engine) for name, engine in self._banks()}

    def request(self) -> None:
        """Reload everything soon. Signal handlers may call it."""
        self._requested = True

    async def run(self) -> None:
        """Watch until cancelled."""
        number = 0
        while True:
            await asyncio.sleep(_EVERY)
            await self.look()
            number += 1
            if number % _SYNC == 0:
                self._service.metrics.sync(self._service.registry.engines)

    async def look(self) -> None:
        """Reload what has changed since the last look."""
        requested, self._requested = self._requested, False
        for name, engine in self._banks():
            status = _status(engine)
            if requested or status != self._statuses[name]:
                self._statuses[name] = status
                await self._reload(name, engine)
        if requested:
            try:
                self._service.keys = self._read_keys()
            except LoraFtError as error:
                self._service.log.event("keys_not_reloaded", error=str(error))

    async def _reload(self, name: str, engine: AsyncModel) -> None:
        try:
            adapters = await asyncio.to_thread(engine.reload)
        except (LoraFtError, OSError) as error:
            self._service.log.event("bundle_not_reloaded", bundle=name, error=str(error))
            return
        self._service.registry.refresh()
        self._service.log.event("bundle_reloaded", bundle=name, adapters=len(adapters))

    def _banks(self) -> list[tuple[str, AsyncModel]]:
        engines = self._service.registry.engines.items()
        return [(name, engine) for name, engine in engines if engine.generator.bank is not None]


def _status(engine: AsyncModel) -> FileStatus:
    try:
        status = (engine.generator.folder / NAME).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino

"""Reads a bank's adapters again when they change.

`lora-ft bank add` and `remove` replace a bank's manifest as a whole when they have finished. So the status of this file
tells whether to read it, which costs microseconds. It is compared every quarter of a second (`Reloader`), for removed
adapters, and before a request is refused because its model is unknown. So an adapter answers from the moment that it is
in the bank, however busy the machine is. A bank that could not be read is read again after a while, since the cause may
leave its manifest as it is: a file that another user wrote, or a network volume.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import file_status
from lora_ft.export.runtime.manifest import NAME
from lora_ft.serving.errors import RequestError
from lora_ft.serving.registry import Registry, ServedModel
from lora_ft.serving.request_log import RequestLog

if TYPE_CHECKING:
    from lora_ft.models.async_model import AsyncModel

_AGAIN = 5.0  # seconds until a bank that could not be read is read again; each attempt is logged


class BankWatch:
    """The models of a process, with the adapters that its banks have now.

    Args:
        registry: Models.
        log: Log of what was read.
    """

    def __init__(self, registry: Registry, log: RequestLog) -> None:
        self._registry, self._log, self._reading = registry, log, asyncio.Lock()
        self._statuses = {name: _status(engine) for name, engine in self._banks()}
        self._failed: dict[str, float] = {}  # time of the latest attempt, by bank that could not be read

    async def look(self, *, always: bool = False) -> None:
        """Read the banks that have changed since the last look or could not be read, or all of them."""
        async with self._reading:
            for name, engine in self._banks():
                status = _status(engine)
                is_due = name in self._failed and time.monotonic() - self._failed[name] >= _AGAIN
                if always or is_due or status != self._statuses[name]:
                    self._statuses[name] = status
                    await self._read(name, engine)

    async def find(self, name: str) -> ServedModel:
        """Return the model of a name.

        Raises:
            RequestError: There is none (status 404).
        """
        try:
            model = self._registry.find(name)
            model.require_served()
        except RequestError:
            await self.look()
            model = self._registry.find(name)
        return model

    async def adapter_of(self, model: ServedModel, row: str | dict[str, Any]) -> ServedModel:
        """Return the adapter that a row of a bank names in its column `adapter`, or the model itself.

        Raises:
            RequestError: The bank has no such adapter.
        """
        named = None if isinstance(row, str) else row.get("adapter")
        if model.adapter is not None or not model.engine.adapters or not named:
            return model
        return await self.find(f"{model.name}/{named}")

    async def _read(self, name: str, engine: AsyncModel) -> None:
        try:
            adapters = await asyncio.to_thread(engine.reload)
        except (LoraFtError, OSError) as error:
            self._failed[name] = time.monotonic()
            self._log.event("bundle_not_reloaded", bundle=name, error=str(error))
            return
        self._failed.pop(name, None)
        self._registry.refresh()
        self._log.event("bundle_reloaded", bundle=name, adapters=len(adapters))

    def _banks(self) -> list[tuple[str, AsyncModel]]:
        engines = self._registry.engines.items()
        return [(name, engine) for name, engine in engines if engine.generator.bank is not None]


def _status(engine: AsyncModel) -> tuple[int, int, int] | None:
    return file_status(engine.generator.folder / NAME)

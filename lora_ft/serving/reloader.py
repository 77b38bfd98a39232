"""Reloads what changes while a server runs: the adapters of a bank, and the API keys.

Banks are looked at several times a second (`BankWatch`). SIGHUP reads banks and keys again in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lora_ft.core.errors import LoraFtError
from lora_ft.serving.app import Service
from lora_ft.serving.keys import ApiKeys

_EVERY = 0.25  # seconds; an adapter that was removed is refused within a second
_SYNC = 4  # rounds between two copies of the engines' totals, for the metrics of several processes


class Reloader:
    """Watches banks.

    Args:
        service: Models and keys of the process.
        read_keys: Returns the API keys of now.
    """

    def __init__(self, service: Service, read_keys: Callable[[], ApiKeys]) -> None:
        self._service, self._read_keys, self._requested = service, read_keys, False

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
        await self._service.banks.look(always=requested)
        if requested:
            try:
                self._service.keys = self._read_keys()
            except LoraFtError as error:
                self._service.log.event("keys_not_reloaded", error=str(error))

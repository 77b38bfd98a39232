"""Names of the models that one process serves: bundles, banks and their adapters.

A bundle goes by its name. An adapter goes by `bank/adapter`, and by its own name where no other model has it.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.serving.errors import RequestError

if TYPE_CHECKING:
    from lora_ft.export.runtime.settings import Settings
    from lora_ft.models.async_model import AsyncModel


@dataclass(frozen=True)
class ServedModel:
    """A bundle, or an adapter of a bank.

    Attributes:
        name: Shortest name.
        engine: Bundle that answers.
        adapter: Adapter of a bank, or None.
    """

    name: str
    engine: AsyncModel
    adapter: str | None

    def require_served(self) -> None:
        """Raise RequestError if the adapter was removed."""
        if self.adapter is not None and self.adapter not in self.engine.adapters:
            raise unknown_model(self.name)

    @property
    def settings(self) -> Settings:
        """Prompt, tokenizer, labels and options of the task.

        Raises:
            RequestError: The adapter was removed (status 404), or its file cannot be read (status 503).
        """
        try:
            return self.engine.generator.of(self.adapter)
        except UsageError as error:
            raise unknown_model(self.name) from error
        except LoraFtError as error:
            raise _unreadable_model(self.name, error) from error


class Registry:
    """The models of a process.

    Attributes:
        engines: Bundles and banks by name.
    """

    def __init__(self, engines: Mapping[str, AsyncModel]) -> None:
        self.engines = dict(engines)
        self._created = int(time.time())
        self._models: dict[str, ServedModel] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take over the banks' adapters of now."""
        adapters = [(bank, name) for bank, engine in self.engines.items() for name in engine.adapters]
        counts = Counter([*self.engines, *(name for _, name in adapters)])
        models = {name: ServedModel(name, engine, None) for name, engine in self.engines.items()}
        for bank, adapter in adapters:
            short = adapter if counts[adapter] == 1 else f"{bank}/{adapter}"
            model = ServedModel(short, self.engines[bank], adapter)
            models |= {short: model, f"{bank}/{adapter}": model}
        self._models = models

    def find(self, name: str) -> ServedModel:
        """Return the model of a name.

        Raises:
            RequestError: There is none (status 404).
        """
        if name not in self._models:
            raise unknown_model(name)
        return self._models[name]

    def serves(self, name: str) -> bool:
        """Return True if there is a model of this name."""
        return name in self._models

    def listed(self) -> list[dict[str, Any]]:
        """Return the entries of GET /v1/models, without adapters that were just removed or cannot be read."""
        entries = []
        for model in {model.name: model for model in self._models.values()}.values():
            with contextlib.suppress(RequestError):
                entries.append(self.entry(model))
        return entries

    def entry(self, model: ServedModel) -> dict[str, Any]:
        """Return one entry of GET /v1/models; `task` is an addition to OpenAI's."""
        settings = model.settings
        return {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "lora-ft",
            "task": {
                "columns": list(settings.prompt.columns) if settings.prompt else [],
                "labels": list(settings.labels),
                "chat": settings.chat is not None,
                "source_length": settings.source_length,
                "max_new_tokens": settings.defaults.get("max_new_tokens"),
                "precision": model.engine.generator.manifest["precision"],
            },
        }


def unknown_model(name: str) -> RequestError:
    """Return the error about a model that is not served."""
    return RequestError(
        f"model {name[:80]!r} does not exist",
        "GET /v1/models lists them",
        param="model",
        status=404,
        code="model_not_found",
    )


def _unreadable_model(name: str, error: LoraFtError) -> RequestError:
    return RequestError(
        f"model {name[:80]!r} cannot be read",
        "tell the operator of the server",
        status=503,
        code="model_failed",
        reason=str(error),
    )

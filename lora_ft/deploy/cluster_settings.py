"""Settings of the application on a cluster, from the arguments of `serve run` or the `args` of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from lora_ft.core.errors import UsageError
from lora_ft.serving.limits import Limits
from lora_ft.serving.process import EngineSettings

_MEBIBYTE = 1 << 20
_REMEDY = "see docs/guides/deployment.md"


@dataclass(frozen=True)
class ClusterSettings:
    """Settings of the application.

    Attributes:
        bundles: Bundles and banks, each FOLDER or NAME=FOLDER, separated by commas. Every node needs these folders.
        min_replicas, max_replicas: Number of replicas of the model.
        gateways: Number of processes that accept requests.
        cpus: CPUs of a replica, and its threads.
        gpus: GPUs of a replica.
        target_requests: Requests at work in a replica, above which another one is added.
        upscale_delay: Time above that number until a replica is added, in seconds.
        downscale_delay: Time below it until a replica is removed, in seconds.
        max_requests: Maximum requests at work in a replica. Further ones go to another replica, also if it must read
            their adapter first.
        max_queue: Requests that may wait for a replica, for each gateway.
        grace: Time for requests at work when a replica is removed, in seconds.
        max_rows: Rows that run together in a replica. 0 for the engine's default.
        memory: Maximum memory of a bundle's cache pool, in MiB. 0 for the engine's default.
        timeout: Deadline of a request, in seconds.
        api_key_file: File with API keys on every node. The variable LORA_FT_API_KEY works, too.
    """

    bundles: str
    min_replicas: int = 1
    max_replicas: int = 1
    gateways: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    target_requests: float = 16.0
    upscale_delay: float = 30.0
    downscale_delay: float = 600.0
    max_requests: int = 32
    max_queue: int = 256
    grace: float = 30.0
    max_rows: int = 0
    memory: int = 0
    timeout: float = 120.0
    api_key_file: str = ""

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> ClusterSettings:
        """Return the settings of arguments, which are texts on the command line of Ray Serve.

        Raises:
            UsageError: An argument is unknown, is of another type or is out of range, or `bundles` is missing.
        """
        kinds = get_type_hints(cls)
        unknown = sorted(arguments.keys() - kinds.keys())
        if unknown:
            raise UsageError(f"{unknown[0]} is not an argument (known: {', '.join(kinds)})", _REMEDY)
        if not arguments.get("bundles"):
            raise UsageError("there is no bundle to serve", "pass bundles=FOLDER")
        settings = cls(**{name: _converted(name, value, kinds[name]) for name, value in arguments.items()})
        settings._check()
        return settings

    @property
    def engine(self) -> EngineSettings:
        """How bundles run in a replica."""
        pool = self.memory * _MEBIBYTE or None
        provider = "auto" if self.gpus else "cpu"
        return EngineSettings(provider, max(1, int(self.cpus)), self.max_rows or None, pool, None)

    @property
    def limits(self) -> Limits:
        """Limits of a request."""
        return Limits(seconds=self.timeout)

    @property
    def folders(self) -> list[str]:
        """Bundles and banks, each as FOLDER or NAME=FOLDER."""
        return [folder.strip() for folder in self.bundles.split(",") if folder.strip()]

    @property
    def keys_file(self) -> Path | None:
        """File with API keys, or None."""
        return Path(self.api_key_file) if self.api_key_file else None

    def _check(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_ZERO else 1 if isinstance(value, int) else 1e-3
            if not isinstance(value, str) and value < least:
                raise UsageError(f"{field.name} is too low (got {value})", f"pass at least {least}")
        if self.max_replicas < self.min_replicas:
            raise UsageError(
                f"max_replicas is below min_replicas (got {self.max_replicas} and {self.min_replicas})",
                f"pass max_replicas={self.min_replicas} or more",
            )


_MAY_BE_ZERO = ("min_replicas", "gpus", "upscale_delay", "downscale_delay", "grace", "max_rows", "memory")


def _converted(name: str, value: Any, kind: type) -> Any:
    if kind is str and isinstance(value, list | tuple):
        return ",".join(map(str, value))
    try:
        if isinstance(value, bool):
            raise ValueError
        number = kind(value)
        if kind is int and not isinstance(value, str) and number != value:
            raise ValueError
    except (TypeError, ValueError) as error:
        expected = {int: "a whole number", float: "a number"}.get(kind, "a text")
        raise UsageError(f"{name} is not {expected} (got {value!r})", _REMEDY) from error
    return number

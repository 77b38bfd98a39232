"""The server as an application of Ray Serve: replicas on the nodes of a cluster, and gateways before them.

    serve run lora_ft.deploy.ray_serve:application bundles=/models/bank max_replicas=4

A gateway reads the model's name in a request and asks a replica that has the adapter in memory, if there is one
(Ray Serve's multiplexed model ids). Rows of one adapter thus meet in one batch, whose adapters need not be copied. If
all these replicas are full, another one gets the adapter, too: a new replica gets its share only then.

Each replica runs the application of `lora-ft serve` with all its endpoints. If it dies, its requests are sent to
another one, once (`retried_answer`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from lora_ft.core.errors import LoraFtError, QueueFullError, UsageError
from lora_ft.deploy.cluster_settings import ClusterSettings
from lora_ft.deploy.forwarded_request import ForwardedRequest, Part, answer_parts
from lora_ft.deploy.gateway import forwarded
from lora_ft.deploy.joined_metrics import joined
from lora_ft.deploy.retried_answer import ReplicaDied

try:
    from ray import serve
    from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
    from ray.serve.handle import DeploymentHandle
except ImportError as error:
    raise UsageError("Ray Serve is not installed", "pip install 'lora-ft[ray]'") from error
from starlette.requests import Request
from starlette.responses import Response

from lora_ft.models.async_model import AsyncModel
from lora_ft.serve import named_bundles
from lora_ft.serving.answers import queue_full
from lora_ft.serving.app import Service
from lora_ft.serving.app import application as asgi_application
from lora_ft.serving.keys import ApiKeys
from lora_ft.serving.metrics import CONTENT_TYPE
from lora_ft.serving.registry import Registry
from lora_ft.serving.reloader import Reloader
from lora_ft.serving.request_log import RequestLog

_LOST = (RayActorError, NodeDiedError, ObjectLostError, WorkerCrashedError, DeploymentUnavailableError)
_ADAPTERS = 16  # adapters of a replica that the router remembers; all others work, too
_HEALTH_SECONDS = 5.0
_METRICS_SECONDS = 5.0


def application(arguments: dict[str, Any]) -> serve.Application:
    """Return the application.

    Args:
        arguments: See `ClusterSettings`.

    Raises:
        UsageError: An argument is unknown or out of range.
    """
    settings = ClusterSettings.of(arguments)
    replicas = serve.deployment(Replica, **replica_options(settings)).bind(settings)
    return serve.deployment(Gateway, **gateway_options(settings)).bind(replicas, settings)


def replica_options(settings: ClusterSettings) -> dict[str, Any]:
    """Return Ray Serve's options of the replicas."""
    return {
        "ray_actor_options": {"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        "autoscaling_config": {
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_requests,
            "upscale_delay_s": settings.upscale_delay,
            "downscale_delay_s": settings.downscale_delay,
        },
        "max_ongoing_requests": settings.max_requests,
        "max_queued_requests": settings.max_queue,
        "graceful_shutdown_timeout_s": settings.grace,
        "health_check_period_s": _HEALTH_SECONDS,
    }


def gateway_options(settings: ClusterSettings) -> dict[str, Any]:
    """Return Ray Serve's options of the gateways."""
    return {
        "num_replicas": settings.gateways,
        "ray_actor_options": {"num_cpus": 0.1},
        "max_ongoing_requests": settings.limits.connections,
        "graceful_shutdown_timeout_s": settings.grace,
    }


class Replica:
    """One process with the bundles.

    Args:
        settings: Settings of the application.
    """

    async def __init__(self, settings: ClusterSettings) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        keys = ApiKeys.read(settings.keys_file)
        folders = named_bundles(settings.folders)
        engine = vars(settings.engine)
        engines = {name: await asyncio.to_thread(AsyncModel.load, folder, **engine) for name, folder in folders.items()}
        self._service = Service(Registry(engines), settings.limits, keys)
        self._app = asgi_application(self._service)
        reloader = Reloader(self._service, lambda: ApiKeys.read(settings.keys_file))
        self._reloading = asyncio.create_task(reloader.run())

    async def answer(self, request: ForwardedRequest) -> AsyncGenerator[Part, None]:
        """Yield the answer to a request."""
        model = serve.get_multiplexed_model_id()
        if self._service.registry.serves(model):
            await self._remember(model)
        async with contextlib.aclosing(answer_parts(self._app, request)) as parts:
            async for part in parts:
                yield part

    async def metrics(self) -> tuple[str, bytes]:
        """Return the name of this replica and its metrics."""
        self._service.metrics.sync(self._service.registry.engines)
        return serve.get_replica_context().replica_id.unique_id, self._service.metrics.text()

    def check_health(self) -> None:
        """Raise if the process should be started again."""
        for name, engine in self._service.registry.engines.items():
            if engine.failed is not None:
                raise LoraFtError(f"the engine of {name} ended ({engine.failed})", "see the log of the replica")

    async def __del__(self) -> None:
        self._reloading.cancel()
        await asyncio.gather(*(engine.close() for engine in self._service.registry.engines.values()))

    @serve.multiplexed(max_num_models_per_replica=_ADAPTERS)  # type: ignore[untyped-decorator]
    async def _remember(self, model: str) -> str:
        """Tell the router that this replica has a model in memory. The request itself reads it."""
        return model


class Gateway:
    """One process that accepts requests.

    Args:
        replicas: Handle of the replicas.
        settings: Settings of the application.
    """

    def __init__(self, replicas: DeploymentHandle, settings: ClusterSettings) -> None:
        self._replicas, self._settings, self._log = replicas, settings, RequestLog()

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        if request.url.path.endswith("/metrics") and request.method == "GET":
            return await self._metrics()
        return await forwarded(self._ask, request, self._settings.limits, self._log)

    async def _ask(self, request: ForwardedRequest) -> AsyncGenerator[Part, None]:
        """Yield the answer of one replica."""
        handle = self._replicas.options(stream=True, multiplexed_model_id=request.model)
        answer = handle.answer.remote(request)
        try:
            async for part in answer:
                yield part
        except _LOST as error:
            raise ReplicaDied(f"a replica died ({type(error).__name__})") from error
        except BackPressureError as error:
            raise queue_full(QueueFullError(self._settings.max_queue, 1.0)) from error
        finally:
            answer.cancel()

    async def _metrics(self) -> Response:
        answers = self._replicas.broadcast("metrics").results_async(timeout_s=_METRICS_SECONDS, return_exceptions=True)
        texts = dict(answer for answer in await answers if not isinstance(answer, BaseException))
        return Response(joined(texts), headers={"Content-Type": CONTENT_TYPE})

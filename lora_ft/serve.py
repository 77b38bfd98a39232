"""The verb `serve`: bundles and banks over HTTP. No torch."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ft.core.errors import UsageError
from lora_ft.core.user_paths import expanded
from lora_ft.export.runtime.manifest import is_bundle, not_a_bundle

if TYPE_CHECKING:
    from lora_ft.serving.process import ServerSettings

_PACKAGES = ("starlette", "uvicorn", "prometheus_client")


def serve(settings: ServerSettings, *, ready: Callable[[str], None] | None = None) -> None:
    """Answer requests until SIGTERM or Ctrl-C.

    Args:
        settings: Bundles, address, limits.
        ready: Called with the server's address once it answers requests.

    Raises:
        UsageError: The address is taken, or the certificate or the keys cannot be read.
        LoraFtError: A bundle cannot be loaded.
    """
    from lora_ft.serving.listener import listen, url_of
    from lora_ft.serving.process import run_process
    from lora_ft.serving.request_log import RequestLog
    from lora_ft.serving.workers import Workers

    log = RequestLog()
    if settings.ssl_keyfile is not None and settings.ssl_certfile is None:
        raise UsageError("the private key for TLS has no certificate", "add --ssl-certfile")
    if not settings.read_keys() and not _is_loopback(settings.host):
        log.event("warning", message=f"anybody who reaches {settings.host} may ask, since there is no API key")
    with listen(settings.host, settings.port) as listener:
        url = url_of(listener, tls=settings.ssl_certfile is not None)

        def started() -> None:
            log.event("listening", url=url, bundles=list(settings.bundles), workers=settings.workers)
            if ready is not None:
                ready(url)

        if settings.workers == 1:
            run_process(settings, listener, started)
        else:
            Workers(settings, listener, started).run()


def require_packages() -> None:
    """Raise UsageError if the packages of the extra `serve` are not installed."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(f"serve needs {', '.join(missing)}", "pip install 'lora-ft[serve]'")


def named_bundles(arguments: Sequence[str | os.PathLike[str]]) -> dict[str, Path]:
    """Return the folder of each bundle by its name.

    Args:
        arguments: Folders, each as FOLDER or NAME=FOLDER. The name of a folder is the default.

    Raises:
        UsageError: A folder is not a bundle, or two have the same name.
    """
    bundles: dict[str, Path] = {}
    for argument in [os.fspath(argument) for argument in arguments]:
        name, equals, folder = argument.partition("=")
        if not equals or is_bundle(Path(argument)):
            name, folder = Path(argument).resolve().name, argument
        place = expanded(folder)  # some shells leave ~ after = as it is
        if not is_bundle(place):
            raise not_a_bundle(place)
        if not name or "/" in name:
            raise UsageError(f"the name of {folder} is unusable (got {name!r})", "give NAME=FOLDER without slashes")
        if name in bundles:
            raise UsageError(f"two bundles are named {name}", f"give one of them as NAME={folder}")
        bundles[name] = place
    if not bundles:
        raise UsageError("no bundle is named", "give a folder that `lora-ft export` wrote")
    return bundles


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

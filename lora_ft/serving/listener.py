"""The socket that the server listens at."""

from __future__ import annotations

import socket

from lora_ft.core.errors import UsageError


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket.

    Raises:
        UsageError: The address is empty, unknown, forbidden or in use.
    """
    if not host.strip():  # as `--host "$HOST"` gives it if the variable is not set
        raise UsageError(
            f"--host is empty (got {host!r})", "give 127.0.0.1 for this machine only, or 0.0.0.0 for every address"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"{host} port {port} is not available ({getattr(error, 'strerror', None) or error})",
            "choose another --host or --port",
        ) from error
    return listener


def url_of(listener: socket.socket, *, tls: bool) -> str:
    """Return the address for users."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

"""The command `serve`: bundles and banks over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_ft.cli.options import Provider

_MEBIBYTE = 1 << 20


def serve(
    bundles: Annotated[list[str], typer.Argument(metavar="BUNDLE...", help="Bundles or banks, each [NAME=]FOLDER.")],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at. Default: this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0 is any free one.")] = 8000,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes, which divide the cores.")] = 1,
    grace: Annotated[float, typer.Option("--grace", min=0, help="Seconds to finish requests after SIGTERM.")] = 30.0,
    provider: Provider = "auto",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of all processes. Default: all cores.")
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", min=1, help="Rows that run together, per bundle and process.")
    ] = None,
    memory: Annotated[
        int | None, typer.Option("--memory", min=1, metavar="MIB", help="Cache memory, per bundle and process.")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option("--max-queue", min=1, help="Requests that may wait, per bundle and process.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Deadline of a request, in seconds.")] = 120.0,
    max_body: Annotated[
        int, typer.Option("--max-body", min=1, help="Maximum size of a request, in bytes.")
    ] = _MEBIBYTE,
    max_prompt_tokens: Annotated[
        int, typer.Option("--max-prompt-tokens", min=1, help="Maximum length of a prompt as it is sent.")
    ] = 8192,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Longest answer that a request may ask for.")
    ] = 1024,
    max_request_rows: Annotated[
        int, typer.Option("--max-request-rows", min=1, help="Rows of a request, counting beams and answers.")
    ] = 64,
    max_n: Annotated[int, typer.Option("--max-n", min=1, help="Answers to one prompt (n).")] = 16,
    max_connections: Annotated[
        int, typer.Option("--max-connections", min=1, help="Open connections of a process.")
    ] = 1024,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="API keys, one a line. See LORA_FT_API_KEY.")
    ] = None,
    ssl_certfile: Annotated[
        Path | None, typer.Option("--ssl-certfile", metavar="FILE", help="Certificate for TLS, as PEM.")
    ] = None,
    ssl_keyfile: Annotated[
        Path | None, typer.Option("--ssl-keyfile", metavar="FILE", help="Private key for TLS, as PEM.")
    ] = None,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Log prompts and answers, too.")] = False,
) -> None:
    """Answer requests over HTTP.

    Speaks OpenAI's interface, so that its clients work unchanged. Open http://127.0.0.1:8000 to try the models.
    SIGTERM finishes the requests at work; SIGHUP reads banks and API keys again.
    """
    from lora_ft.serve import named_bundles, require_packages
    from lora_ft.serve import serve as run

    require_packages()
    from lora_ft.serving.limits import Limits
    from lora_ft.serving.process import EngineSettings, ServerSettings

    limits = Limits(
        body_bytes=max_body,
        rows=max_request_rows,
        answers=max_n,
        prompt_tokens=max_prompt_tokens,
        new_tokens=max_tokens,
        seconds=timeout,
        connections=max_connections,
    )
    pool = None if memory is None else memory * _MEBIBYTE
    settings = ServerSettings(
        bundles=named_bundles(bundles),
        host=host,
        port=port,
        workers=workers,
        grace=grace,
        keys_file=api_key_file,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        log_texts=log_texts,
        engine=EngineSettings(provider, threads, max_rows, pool, max_queue),
        limits=limits,
    )
    run(settings)

"""A FastAPI service of one's own around a bundle: one endpoint for whole answers, one that streams.

    pip install 'lora-ft[serve]' fastapi
    BUNDLE=runs/examples/bundles/summaries uvicorn --app-dir examples fastapi_app:app

`lora-ft serve` is a finished server with OpenAI's endpoints. This is the way to put a model into an application that
exists already: requests that arrive at the same time share the running batch, and a client that disconnects frees its
rows.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

import lora_ft


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model with the application, and let running answers end when it stops."""
    app.state.model = lora_ft.AsyncModel.load(os.environ["BUNDLE"])
    yield
    await app.state.model.close(grace=10)


app = FastAPI(lifespan=lifespan)


def refusal(error: lora_ft.LoraFtError) -> HTTPException:
    """Return the answer to a request that the model refused."""
    if isinstance(error, lora_ft.QueueFullError):
        return HTTPException(429, str(error), {"Retry-After": f"{error.retry_after:.0f}"})
    if isinstance(error, lora_ft.UsageError):  # the row does not fit the prompt
        return HTTPException(422, str(error))
    return HTTPException(503, str(error))


@app.post("/answer")
async def answer(row: dict[str, Any], request: Request) -> dict[str, str]:
    """Answer a row: a JSON object with the columns of the task's prompt."""
    try:
        (text,) = await request.app.state.model.generate(row)
    except lora_ft.LoraFtError as error:
        raise refusal(error) from error
    return {"answer": text}


@app.post("/stream")
async def stream(row: dict[str, Any], request: Request) -> StreamingResponse:
    """Answer a row piece by piece, as text."""
    try:
        generation = request.app.state.model.start(row)
    except lora_ft.LoraFtError as error:
        raise refusal(error) from error

    async def pieces() -> AsyncIterator[str]:
        try:
            async for delta in generation:
                yield delta.text
        finally:
            generation.cancel()  # the client has gone, or the answer is complete

    return StreamingResponse(pieces(), media_type="text/plain; charset=utf-8")

"""A server that batches whole requests, as most T5 services do: the peer of `lora-ft serve`.

    python -P batch_server.py KIND PRECISION CHECKPOINT PREPARED PORT [--batch 8] [--wait 0] [--threads N] [--workers 1]

Waiting requests are answered together, and each waits for the longest beside it. KIND is

- `bank` for a bundle or bank of lora-ft, the folder PREPARED; CHECKPOINT is not used,
- `translator` for CTranslate2 with its own parallelism: `--workers N --batch 1` answers N requests at a time, each on
  its share of the cores,
- or an engine of `worker.py`.

The server speaks POST /v1/completions without streams, on asyncio alone. That is cheaper than the usual web framework,
so the comparison favors it. This module imports only the packages of its engine, since lora-ft is not installed in the
environment of a peer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCE = 512  # maximum prompt length, in tokens, as in the task of the benchmark
NEW = 128  # default of max_tokens


@dataclass
class Waiting:
    """A request in the queue.

    Attributes:
        prompt, model, limit: Fields of the request.
        answer: Text and number of tokens, once it is answered.
    """

    prompt: str
    model: str
    limit: int
    answer: asyncio.Future[tuple[str, int]] = field(default_factory=asyncio.Future)


Answers = list[tuple[str, int]]  # text and number of tokens of each request
Answer = Callable[[Sequence[Waiting]], Answers]


class Batcher:
    """A queue whose requests are answered together.

    Args:
        answer: Answers requests, in a thread.
        batch: Maximum number of requests answered together.
        wait: Time that a request waits for others while the engine is idle, in seconds.
        workers: Batches that run at a time.
    """

    def __init__(self, answer: Answer, batch: int, wait: float, workers: int) -> None:
        self._answer, self._batch, self._wait = answer, batch, wait
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(workers)
        self._tasks = [asyncio.create_task(self._run()) for _ in range(workers)]

    async def ask(self, prompt: str, model: str, limit: int) -> tuple[str, int]:
        """Queue a request, and return its answer."""
        waiting = Waiting(prompt, model, limit)
        self._queue.put_nowait(waiting)
        return await waiting.answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            deadline = loop.time() + self._wait
            while len(batch) < self._batch:
                try:
                    batch.append(self._queue.get_nowait())
                except asyncio.QueueEmpty:
                    if loop.time() >= deadline:
                        break
                    await asyncio.sleep(min(0.001, self._wait))
            try:
                answers = await loop.run_in_executor(self._threads, self._answer, batch)
            except Exception as error:
                for waiting in batch:
                    waiting.answer.set_exception(error)
                continue
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.answer.set_result(answer)


def load_engine(kind: str, precision: str, checkpoint: Path, prepared: Path, threads: int) -> Answer:
    """Return a function that answers requests with an engine of `worker.py`; its files are written on first use."""
    process = _converted(kind, precision, checkpoint, prepared, threads)
    process.load()
    tokenizer = _tokenizer(checkpoint)

    def answer(batch: Sequence[Waiting]) -> Answers:
        ids = [encoding.ids for encoding in tokenizer.encode_batch([waiting.prompt for waiting in batch])]
        new = max(waiting.limit for waiting in batch)
        tokens = process.generate(ids, new, 0, "greedy", new)["tokens"]
        rows = [row[: waiting.limit] for row, waiting in zip(tokens, batch, strict=True)]
        return [
            (tokenizer.decode(row), min(len(row) + 1, waiting.limit)) for row, waiting in zip(rows, batch, strict=True)
        ]

    return answer


def load_translator(precision: str, checkpoint: Path, prepared: Path, threads: int, workers: int) -> Answer:
    """Return a function that answers requests with CTranslate2, whose workers share the weights."""
    _converted("ctranslate2", precision, checkpoint, prepared, threads)
    import ctranslate2

    kind = {"fp32": "float32"}.get(precision, precision)
    translator = ctranslate2.Translator(
        str(prepared), compute_type=kind, inter_threads=workers, intra_threads=max(1, threads // workers)
    )
    tokenizer = _tokenizer(checkpoint)

    def answer(batch: Sequence[Waiting]) -> Answers:
        tokens = [encoding.tokens for encoding in tokenizer.encode_batch([waiting.prompt for waiting in batch])]
        new = max(waiting.limit for waiting in batch)
        results = translator.translate_batch(tokens, beam_size=1, max_decoding_length=new, max_input_length=0)
        rows = [[tokenizer.token_to_id(token) for token in result.hypotheses[0]] for result in results]
        return [(tokenizer.decode(row), len(row) + 1) for row in rows]

    return answer


def load_bank(folder: Path, threads: int) -> tuple[Answer, list[str]]:
    """Return a function that answers requests with a bundle or bank of lora-ft, and the names of its models."""
    from lora_ft.export.runtime import Generator

    generator = Generator.load(folder, threads=threads)

    def answer(batch: Sequence[Waiting]) -> Answers:
        names = [waiting.model if waiting.model in generator.adapters else None for waiting in batch]
        results = generator.answer(
            [waiting.prompt for waiting in batch],
            adapter=names,
            batch_size=len(batch),
            max_new_tokens=max(waiting.limit for waiting in batch),
            do_sample=False,
        )
        rows = [result.tokens[: waiting.limit] for result, waiting in zip(results, batch, strict=True)]
        return [(text, len(row)) for text, row in zip(generator.tokenizer.decode(rows), rows, strict=True)]

    return answer, [folder.resolve().name, *generator.adapters]


def _converted(kind: str, precision: str, checkpoint: Path, prepared: Path, threads: int) -> Any:
    """Return an engine that is not loaded yet, after the conversion of the checkpoint on first use."""
    worker = _worker()
    worker.hide_torchvision()
    process = worker.Process(kind, precision, checkpoint, prepared, threads, "cpu")
    process.imports()
    if not prepared.is_dir():
        process.convert()
    return process


def _worker() -> Any:
    spec = importlib.util.spec_from_file_location("worker", Path(__file__).with_name("worker.py"))
    assert spec is not None and spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    return worker


def _tokenizer(checkpoint: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_truncation(SOURCE)
    return tokenizer


async def serve(batcher: Batcher, models: Sequence[str], port: int) -> None:
    """Answer requests at a port of this machine."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                sizes = [int(line.partition(":")[2]) for line in head if line.lower().startswith("content-length:")]
                body = await reader.readexactly(sizes[0] if sizes else 0)
                status, content = await _answered(batcher, models, head[0], body)
                data = json.dumps(content).encode()
                fields = f"Content-Type: application/json\r\nContent-Length: {len(data)}"
                writer.write(f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + data)
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", port) as server:
        await server.serve_forever()


async def _answered(batcher: Batcher, models: Sequence[str], line: str, body: bytes) -> tuple[str, dict[str, Any]]:
    """Return status and content of the answer to a request."""
    if line.startswith("GET /v1/models "):
        return "200 OK", {"object": "list", "data": [{"id": name, "object": "model"} for name in models]}
    if not line.startswith("POST /v1/completions "):
        return "404 Not Found", {"error": {"message": f"{line} is not served"}}
    try:
        fields = json.loads(body)
        prompt, model, limit = fields["prompt"], fields["model"], int(fields.get("max_tokens", NEW))
    except (ValueError, KeyError, TypeError) as error:
        return "400 Bad Request", {"error": {"message": f"the request is malformed ({error!r})"}}
    try:
        text, tokens = await batcher.ask(prompt, model, limit)
    except Exception as error:  # of an engine
        return "500 Internal Server Error", {"error": {"message": f"{type(error).__name__}: {error}"}}
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    return "200 OK", {"object": "text_completion", "choices": [choice], "usage": {"completion_tokens": tokens}}


def main() -> None:
    """Load the engine and serve."""
    parser = argparse.ArgumentParser(description="Serve a model in whole-request batches.")
    parser.add_argument("kind", help="bank, translator, or an engine of worker.py")
    parser.add_argument("precision")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--wait", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    models = ["base"]
    if options.kind == "bank":
        answer, models = load_bank(options.prepared, options.threads)
    elif options.kind == "translator":
        answer = load_translator(
            options.precision, options.checkpoint, options.prepared, options.threads, options.workers
        )
    else:
        answer = load_engine(options.kind, options.precision, options.checkpoint, options.prepared, options.threads)

    async def run() -> None:
        await serve(Batcher(answer, options.batch, options.wait, options.workers), models, options.port)

    asyncio.run(run())


if __name__ == "__main__":
    main()

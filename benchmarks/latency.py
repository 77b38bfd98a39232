"""How long generation takes, engine against engine on the same model.

    python -m benchmarks.latency CHECKPOINT BUNDLE [--batch 1 --batch 8] [--rounds 7] [--json FILE]

Each engine runs in a process of its own. The engines take turns in a random order, and a ratio is taken within a round,
so that a machine whose speed drifts slows all of them alike. Every engine must make the same number of tokens.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer

from export.errors import LoraFtError
from export.files import write_json


@dataclass(frozen=True)
class Latency:
    """What was measured for one batch size.

    Attributes:
        batch, source, new: rows, tokens in, tokens out (forced).
        seconds: by engine, one for each round.
        median: by engine, seconds.
        milliseconds_per_token: by engine, of the median, over all rows.
        ratio: median over the rounds of the first engine's time over the second's.
    """

    batch: int
    source: int
    new: int
    seconds: dict[str, list[float]]
    median: dict[str, float]
    milliseconds_per_token: dict[str, float]
    ratio: float


class Worker:
    """An engine in its process. Use it as a context manager."""

    def __init__(self, engine: str, model: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.worker", engine, str(model)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._engine = engine

    def __enter__(self) -> Worker:
        self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def seconds(self, **request: int) -> float:
        """Time of one request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LoraFtError(f"the engine {self._engine} ended with exit code {self._process.wait()}")
        return json.loads(line)


def compare(
    checkpoint: Path, bundle: Path, *, batches: Sequence[int] = (1, 8), source: int = 128, new: int = 64,
    rounds: int = 7, seed: int = 0, done: Callable[[int], None] = lambda rounds: None,
) -> list[Latency]:  # fmt: skip
    """transformers in float32 against the bundle, for each batch size; `done` is told how many rounds are over."""
    order = random.Random(seed)
    results, finished = [], 0
    with Worker("torch", checkpoint) as torch, Worker("onnx", bundle) as onnx:
        workers = {"torch": torch, "onnx": onnx}
        for batch in batches:
            request = {"batch": batch, "source": source, "new": new}
            for worker in workers.values():
                worker.seconds(**request)  # the first call allocates
            seconds: dict[str, list[float]] = {name: [] for name in workers}
            for _ in range(rounds):
                for name in order.sample(list(workers), len(workers)):
                    seconds[name].append(workers[name].seconds(**request))
                finished += 1
                done(finished)
            median = {name: statistics.median(values) for name, values in seconds.items()}
            results.append(
                Latency(
                    **request,
                    seconds=seconds,
                    median=median,
                    milliseconds_per_token={name: 1000 * value / new for name, value in median.items()},
                    ratio=statistics.median(a / b for a, b in zip(seconds["torch"], seconds["onnx"], strict=True)),
                )
            )
    return results


def _main(
    checkpoint: Path,
    bundle: Path,
    batch: Annotated[list[int], typer.Option(min=1)] = [1, 8],  # noqa: B006
    source: int = 128,
    new: int = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print a line for each batch size; write all of it with --json."""
    from lora_ft.doctor import environment

    results = compare(checkpoint, bundle, batches=batch, source=source, new=new, rounds=rounds)
    for result in results:
        print(
            f"batch {result.batch}, {result.source} in, {result.new} out: "
            f"torch {1000 * result.median['torch']:.0f} ms, onnx {1000 * result.median['onnx']:.0f} ms, "
            f"torch/onnx {result.ratio:.2f}"
        )
    if json_file is not None:
        write_json(json_file, {"environment": environment(), "latency": [asdict(result) for result in results]})


if __name__ == "__main__":
    typer.run(_main)

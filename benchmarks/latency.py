"""How long generation takes, engine against engine on the same model.

    python -m benchmarks.latency torch:CHECKPOINT onnx:BUNDLE [--batch 1 --batch 8] [--rounds 7] [--json FILE]

Each engine runs in a process of its own. The engines take turns in a random order, and a ratio is taken within a round,
so that a machine whose speed drifts slows all of them alike. Every engine must make the same number of tokens.
"""

from __future__ import annotations

import contextlib
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

from benchmarks.worker import ENGINES
from export.errors import LoraFtError
from export.files import write_json
from export.runtime.cpu import allowed_cpus


@dataclass(frozen=True)
class Engine:
    """What is timed.

    Attributes:
        kind: of `benchmarks.worker`.
        folder: what it loads.
        python: the interpreter that has its packages.
        label: its name in results; by default its kind.
    """

    kind: str
    folder: Path
    python: str = sys.executable
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.kind


@dataclass(frozen=True)
class Latency:
    """What was measured for one batch size.

    Attributes:
        batch, source, new: rows, tokens in, tokens out (forced).
        seconds: by engine, one for each round.
        median: by engine, seconds.
        milliseconds_per_token: by engine, of the median, over all rows.
        ratio: by engine, the median over the rounds of the first engine's time over its own: how many times as fast.
    """

    batch: int
    source: int
    new: int
    seconds: dict[str, list[float]]
    median: dict[str, float]
    milliseconds_per_token: dict[str, float]
    ratio: dict[str, float]


class Worker:
    """An engine in its process. Use it as a context manager."""

    def __init__(self, engine: Engine) -> None:
        command = [engine.python, "-m", "benchmarks.worker", engine.kind, str(engine.folder), str(allowed_cpus())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._engine = engine.name

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
    engines: Sequence[Engine], *, batches: Sequence[int] = (1, 8), source: int = 128, new: int = 64,
    rounds: int = 7, seed: int = 0, done: Callable[[int], None] = lambda rounds: None,
) -> list[Latency]:  # fmt: skip
    """Time some engines against each other for each batch size; `done` is told how many rounds are over."""
    order = random.Random(seed)
    results, finished = [], 0
    with contextlib.ExitStack() as running:
        workers = {engine.name: running.enter_context(Worker(engine)) for engine in engines}
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
            first = seconds[engines[0].name]
            results.append(
                Latency(
                    **request,
                    seconds=seconds,
                    median=median,
                    milliseconds_per_token={name: 1000 * value / new for name, value in median.items()},
                    ratio={
                        name: statistics.median(a / b for a, b in zip(first, values, strict=True))
                        for name, values in seconds.items()
                    },
                )
            )
    return results


def _main(
    engine: Annotated[list[str], typer.Argument(help="KIND:FOLDER, e.g. torch:runs/x/checkpoint onnx:runs/x/bundle.")],
    batch: Annotated[list[int], typer.Option(min=1)] = [1, 8],  # noqa: B006
    source: int = 128,
    new: int = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    peers: Annotated[str, typer.Option(help="Interpreter that has the packages of openvino and ctranslate2.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print a table for each batch size; write all of it with --json."""
    from lora_ft.doctor import environment

    engines = [parse(text, peers or sys.executable) for text in engine]
    results = compare(engines, batches=batch, source=source, new=new, rounds=rounds)
    for result in results:
        print(f"batch {result.batch}, {result.source} in, {result.new} out")
        for name, seconds in result.median.items():
            print(
                f"  {name:24} {1000 * seconds:7.0f} ms   {result.ratio[name]:5.2f} times as fast as {engines[0].name}"
            )
    if json_file is not None:
        write_json(json_file, {"environment": environment(), "latency": [asdict(result) for result in results]})


def parse(text: str, peers: str) -> Engine:
    """An engine from KIND:FOLDER; a bundle goes by its folder's name, as there may be several."""
    kind, _, folder = text.partition(":")
    if kind not in ENGINES or not folder:
        raise typer.BadParameter(f"{text!r} is not KIND:FOLDER with a kind of {', '.join(ENGINES)}")
    foreign = kind.startswith(("openvino", "ctranslate2"))
    return Engine(
        kind,
        Path(folder),
        peers if foreign else sys.executable,
        f"{kind} {Path(folder).name}" if kind == "onnx" else "",
    )


if __name__ == "__main__":
    typer.run(_main)

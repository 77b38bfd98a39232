"""Measure the share of generation spent outside ONNX Runtime: feeding it, choosing tokens, tracking rows.

    python -m benchmarks.studies.overhead BUNDLE... [--rounds 7] [--json FILE]

128 tokens in, 64 out; medians over rounds. Reading the clock twice per call counts as time outside.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.command import run_command
from lora_ft.core.files import write_json
from lora_ft.doctor import environment
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.io_binding import BoundSession
from lora_ft.export.runtime.model import Model

_SOURCE, _NEW = 128, 64
_WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 50},
    "beams of 4": {"num_beams": 4},
}


class Clock:
    """Time spent inside ONNX Runtime since the last reset, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a wrapper that adds the time of the function to `seconds`."""

        def run(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return run


def measure(bundle: Path, rounds: int, clock: Clock) -> list[dict[str, Any]]:
    """Return the time of each decoding at batch 1 and 8, and its share outside ONNX Runtime."""
    generator = Generator.load(bundle)
    cases = []
    for batch in (1, 8):
        ids = np.random.default_rng(0).integers(3, generator.tokenizer.size, (batch, _SOURCE))
        for name, options in _WAYS.items():
            times, shares = [], []
            for turn in range(rounds + 1):
                clock.seconds, began = 0.0, time.perf_counter()
                generator.generate_ids(
                    ids, np.ones_like(ids), max_new_tokens=_NEW, min_new_tokens=_NEW, prompt_lookup=False, **options
                )
                seconds = time.perf_counter() - began
                if turn:  # the first turn loads graphs and allocates memory, and is not counted
                    times.append(seconds)
                    shares.append(1 - clock.seconds / seconds)
            cases.append(
                {
                    "bundle": bundle.name,
                    "precision": generator.manifest["precision"],
                    "batch": batch,
                    "decoding": name,
                    "milliseconds": round(1000 * statistics.median(times), 1),
                    "outside": round(statistics.median(shares), 4),
                }
            )
    return cases


def main(
    bundles: list[Path],
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each case.")] = 7,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
) -> None:
    """Measure the overhead and print it for each bundle."""
    clock = Clock()
    _watch(clock)
    cases = [case for bundle in bundles for case in measure(bundle, rounds, clock)]
    if json_file is not None:
        write_json(json_file, {"environment": environment(), "cases": cases})
    for case in cases:
        print(
            f"{case['precision']}, batch {case['batch']}, {case['decoding']}: {case['milliseconds']:.0f} ms, "
            f"{case['outside']:.1%} of it outside ONNX Runtime"
        )


def _watch(clock: Clock) -> None:
    """Run the clock during every call of ONNX Runtime, by wrapping the methods that call it."""
    begin = BoundSession.__init__

    def timed(bound: BoundSession, *arguments: Any) -> None:
        begin(bound, *arguments)
        bound._run = clock.timed(bound._run)

    BoundSession.__init__ = timed  # type: ignore[assignment,method-assign]
    Model._run = clock.timed(Model._run)  # type: ignore[method-assign]


if __name__ == "__main__":
    run_command(main)

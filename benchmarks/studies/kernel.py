"""Measure the decoder kernel (`lora-ft-kernels`) against the graphs of the same bundles.

    python -m benchmarks.studies.kernel BUNDLE... [--rounds 9] [--json FILE]

128 tokens in, 64 out, whole requests at batch 1 and 8. Both sides run in a process of their own, in turns.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.command import run_command
from lora_ft.core.errors import UsageError
from lora_ft.core.files import write_json
from lora_ft.doctor import environment
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.kernel import VARIABLE
from lora_ft.reports.markdown import table

_SOURCE, _NEW = 128, 64
_BATCHES = (1, 8)
_SIDES = {"graphs": "0", "kernel": "1"}


class Side:
    """A bundle that is loaded in a process of its own, with or without the kernel. Closed at the end of a `with`.

    Args:
        bundle: Folder of the bundle.
        name: A key of `_SIDES`.

    Attributes:
        steps_by: What takes the decoder's steps (`Generator.step_engine`).
    """

    def __init__(self, bundle: Path, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(bundle, _SIDES[name], theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.steps_by: str = self._pipe.recv()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.close()
        self._process.join()

    def time(self, batch: int) -> tuple[float, list[list[int]]]:
        """Return the seconds of a request of `batch` rows, and its tokens."""
        self._pipe.send(batch)
        return self._pipe.recv()


def _serve(bundle: Path, switch: str, pipe: Connection) -> None:
    os.environ[VARIABLE] = switch
    generator = Generator.load(bundle)
    pipe.send(generator.step_engine)
    rows = np.random.default_rng(0).integers(3, generator.tokenizer.size, (max(_BATCHES), _SOURCE))
    while True:
        try:
            ids = rows[: pipe.recv()]
        except EOFError:
            return
        began = time.perf_counter()
        tokens = generator.generate_ids(
            ids, np.ones_like(ids), max_new_tokens=_NEW, min_new_tokens=_NEW, prompt_lookup=False
        )
        pipe.send((time.perf_counter() - began, tokens.tolist()))


def measure(bundle: Path, rounds: int) -> list[dict[str, Any]]:
    """Return the figures of a bundle at each batch size.

    Raises:
        UsageError: The kernel does not take the bundle's steps here.
    """
    with ExitStack() as running:
        sides = {name: running.enter_context(Side(bundle, name)) for name in _SIDES}
        if not sides["kernel"].steps_by.startswith("kernel"):
            raise UsageError(f"the kernel does not run {bundle} ({sides['kernel'].steps_by})", "run make kernels")
        return [_case(bundle, sides, batch, rounds) for batch in _BATCHES]


def _case(bundle: Path, sides: dict[str, Side], batch: int, rounds: int) -> dict[str, Any]:
    answers = {name: side.time(batch)[1] for name, side in sides.items()}  # also loads graphs and allocates memory
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            seconds[name].append(sides[name].time(batch)[0])
    ratios = [graphs / kernel for graphs, kernel in zip(seconds["graphs"], seconds["kernel"], strict=True)]
    same = [a == b for a, b in zip(answers["graphs"], answers["kernel"], strict=True)]
    return {
        "precision": Generator.load(bundle).manifest["precision"],
        "batch": batch,
        "milliseconds": {name: round(1000 * statistics.median(times), 1) for name, times in seconds.items()},
        "ratio": [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))],
        "same_rows": [sum(same), len(same)],
    }


def tables(results: dict[str, Any]) -> str:
    """Return the table of the documentation."""
    lines = [
        (
            f"`{case['precision']}`",
            str(case["batch"]),
            *(f"{case['milliseconds'][name]:.1f}" for name in _SIDES),
            "{:.2f} [{:.2f}, {:.2f}]".format(*case["ratio"]),
        )
        for case in results["cases"]
    ]
    return table(["precision", "batch", "graphs, ms", "kernel, ms", "ratio, median [rounds]"], lines)


def _main(
    bundles: list[Path],
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each case.")] = 9,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
) -> None:
    """Measure the kernel and print the table."""
    cases = [case for bundle in bundles for case in measure(bundle, rounds)]
    results = {"environment": environment(), "source": _SOURCE, "new": _NEW, "rounds": rounds, "cases": cases}
    if json_file is not None:
        write_json(json_file, results)
    print(tables(results))


if __name__ == "__main__":
    run_command(_main)

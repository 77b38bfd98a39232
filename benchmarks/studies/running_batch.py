"""Measure what a running batch costs: the step by rows, sources alone or together, lanes by length, and drafts.

    python -m benchmarks.studies.running_batch BANK [--rounds 30] [--json FILE]

The server's scheduler (`lora_ft/export/runtime/scheduler.py`) is built on these figures. All cases take turns, so that
a disturbance meets each of them, and every figure is the median of the rounds.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.command import run_command
from lora_ft.core.errors import UsageError
from lora_ft.core.files import write_json
from lora_ft.doctor import environment
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.bank import RowAdapters
from lora_ft.export.runtime.lane import Encoded, Lane
from lora_ft.reports.markdown import table

ROWS = (1, 2, 4, 8, 16, 32)
SOURCES = (128, 512)  # tokens
CALLS = (2, 4, 8)  # tokens that one row checks in a call
_NAMES = {"none": "base", "mixed": "mixed adapters"}
_STEPS = 40  # capacity of a lane, in tokens; its answers start over when it is full
_LENGTHS = (64, 512)  # tokens of the sources of two lanes
_ENCODED = (64, 128, 256)

# Runs what is measured once. Its time in a round is one observation.
Case = Callable[[], object]


class Cases:
    """What is measured of one bank.

    Args:
        generator: The bank.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator, self._model, self._rng = generator, generator.model, np.random.default_rng(0)

    def all(self) -> dict[str, Case]:
        """Return the cases by their keys."""
        lengths = {f"lane {n} of {length}": self._step([length] * n) for length in _LENGTHS for n in (1, 2, 4)}
        together = {f"lanes together {n}": self._step([x for x in _LENGTHS for _ in range(n)]) for n in (1, 2, 4)}
        return {
            **{
                f"step {source} {adapters} {rows}": self._step([source] * rows, adapters)
                for source in SOURCES
                for adapters in _NAMES
                for rows in ROWS
            },
            **lengths,
            **together,
            **{f"call {tokens}": self._call(tokens) for tokens in CALLS},
            **{f"encoder {tokens} {rows}": self._encode(tokens, rows) for tokens in _ENCODED for rows in (1, 4, 8)},
        }

    def _adapters(self, kind: str, row: int) -> RowAdapters | None:
        bank, names = self._generator.bank, self._generator.adapters
        if kind == "none" or bank is None:
            return None
        return bank.select([names[row % len(names)]])

    def _step(self, lengths: list[int], adapters: str = "none") -> Case:
        """Return a step of one lane with sources of these lengths."""
        lane = Lane(self._model, max(lengths), _STEPS, len(lengths))
        for row, length in enumerate(lengths):
            ids = self._ids(1, length)
            selected = self._adapters(adapters, row)
            source = self._model.encode(ids, np.ones_like(ids), selected)
            lane.add(Encoded(source, length, selected))
        tokens, slots = self._ids(len(lengths), 1), range(len(lengths))

        def run() -> None:
            if lane.lengths.max() + 1 >= _STEPS:
                lane.lengths[:] = 0
            lane.next(tokens)
            lane.advance(slots)

        return run

    def _call(self, count: int) -> Case:
        """Return a call of several tokens of one row, as for a checked draft."""
        ids, tokens = self._ids(1, SOURCES[0]), self._ids(1, count)
        source = self._model.encode(ids, np.ones_like(ids))
        cache = self._model.cache(1)
        self._model.step(source, cache, self._ids(1, 1))
        lengths = cache.lengths.copy()

        def run() -> None:
            cache.lengths = lengths.copy()
            self._model.step(source, cache, tokens)

        return run

    def _encode(self, length: int, rows: int) -> Case:
        ids = self._ids(rows, length)
        return lambda: self._model.encode(ids, np.ones_like(ids))

    def _ids(self, rows: int, length: int) -> np.ndarray:
        return self._rng.integers(3, self._generator.tokenizer.rows, (rows, length))


def measure(bank: Path, rounds: int) -> dict[str, Any]:
    """Return the median time of each case, in seconds, and the bank's precision and number of adapters.

    Raises:
        UsageError: The bundle is not a bank of two adapters or more.
    """
    generator = Generator.load(bank)
    if len(generator.adapters) < 2:
        raise UsageError(f"{bank} has fewer than two adapters", "give a bank with two adapters or more")
    cases = Cases(generator).all()
    times: dict[str, list[float]] = {key: [] for key in cases}
    order, rng = list(cases), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for key in order:
            cases[key]()  # warm: the memory of other cases has replaced this one's in the processor
            began = time.perf_counter()
            cases[key]()
            times[key].append(time.perf_counter() - began)
    return {
        "precision": generator.manifest["precision"],
        "adapters": len(generator.adapters),
        "rounds": rounds,
        "seconds": {key: statistics.median(seconds) for key, seconds in times.items()},
    }


def tables(results: dict[str, Any]) -> str:
    """Return the figures in Markdown."""
    times = results["seconds"]
    steps = [
        [
            f"{source} tokens, {_NAMES[kind]}",
            *(_ms(times[f"step {source} {kind} {rows}"]) for rows in ROWS),
        ]
        for source in SOURCES
        for kind in _NAMES
    ]
    encoder = [
        [f"{tokens} tokens", *(_ms(times[f"encoder {tokens} {rows}"] / rows) for rows in (1, 4, 8))]
        for tokens in _ENCODED
    ]
    lanes = [
        [
            f"{n} and {n} rows",
            _ms(times[f"lanes together {n}"]),
            _ms(sum(times[f"lane {n} of {length}"] for length in _LENGTHS)),
        ]
        for n in (1, 2, 4)
    ]
    alone, pair = (times[f"step {SOURCES[0]} none {rows}"] for rows in (1, 2))
    drafts = [
        [
            str(tokens),
            _ms(seconds),
            f"{seconds / alone:.1f}",
            f"{seconds / (pair - alone):.1f}" if pair > alone else "never",
        ]
        for tokens in CALLS
        for seconds in [times[f"call {tokens}"]]
    ]
    short, long = _LENGTHS
    return "\n\n".join(
        [
            table(["ms of a step, by rows", *map(str, ROWS)], steps),
            table(["encoder, ms a row", "alone", "4 together", "8 together"], encoder),
            table([f"sources of {short} and {long} tokens", "one step, ms", "a step of each, ms"], lanes),
            table(["tokens of a row in one call", "ms", "pay alone from", "pay beside a row from"], drafts)
            + "\n\nA call must give that many tokens to be as fast as steps. Beside another row, a row adds to a "
            "step only what two rows take longer than one, so drafts rarely pay there.",
        ]
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def main(
    bank: Path,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds, of which the medians are taken.")] = 30,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
) -> None:
    """Measure a bank and print the tables."""
    results = {"environment": environment(), **measure(bank, rounds)}
    if json_file is not None:
        write_json(json_file, results)
    print(tables(results))


if __name__ == "__main__":
    run_command(main)

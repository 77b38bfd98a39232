"""Compare two file formats of adapters: safetensors, which the runtime uses, and ONNX Runtime's `.onnx_adapter`.

    python -m benchmarks.studies.adapter_files [--base offline] [--json FILE]

A `.onnx_adapter` applies to a whole call and not to a row (`RunOptions.add_active_adapter`). So it cannot mix adapters
in a batch, and a call with I/O binding does not accept it. The study therefore compares steps whose rows share one
adapter. Both formats hold the arrays of the step's graph. A graph rejects a `.onnx_adapter` with arrays that are not
its inputs, so an adapter would need one file for each graph.

Results (results/adapter_files.json, FLAN-T5-small int8, rank 16, two Zen 5 cores): as `.onnx_adapter`, 100 adapters
load in 0.01 s instead of 0.18 s, and the process uses 5 % less memory. A step takes equally long with both formats.
With I/O binding, as in the runtime, a step takes 10 to 20 % less time. The runtime uses safetensors because they can be
mixed in a batch, and because one file serves all graphs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import onnxruntime as ort
import typer

from benchmarks.command import run_command
from benchmarks.studies.sharing import memory
from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import write_json
from lora_ft.export.runtime.native_session import run_named
from lora_ft.export.runtime.safetensors_file import map_tensors, write_tensors
from lora_ft.export.runtime.session import open_session, ort_value

_GRAPH, _OUTPUTS = "bank.step", ["next"]
_SOURCE, _ROOM, _PAST = 64, 64, 32  # tokens of the prompt, of the cache's capacity, and of its content
# Script that loads every file, runs a step with each adapter, prints the load time, and waits to be killed.
_SERVE = """
import sys, time
from pathlib import Path
from benchmarks.studies.adapter_files import FORMATS, Step

step, form = Step(Path(sys.argv[1]), 1), FORMATS[sys.argv[2]]
files = sorted(Path(sys.argv[3]).iterdir())
began = time.perf_counter()
loaded = [form.load(file) for file in files]
seconds = time.perf_counter() - began
for adapter in loaded:
    step.run(*form.arguments(adapter))
print(seconds, flush=True)
sys.stdin.read()
"""

Arguments = tuple[Mapping[str, ort.OrtValue], ort.RunOptions | None]  # inputs and options of one call


class Format(Protocol):
    """Interface of a file format: write an adapter, load it, and pass it to a call."""

    def write(self, file: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays without the batch axis, keyed by the name of the graph's input."""

    def load(self, file: Path) -> Any:
        """Load an adapter for use in calls."""

    def arguments(self, loaded: Any) -> Arguments:
        """Return the arguments of a call with a loaded adapter."""


class Safetensors:
    """Format of the runtime: memory-mapped, with one graph input for each array."""

    def write(self, file: Path, arrays: Mapping[str, np.ndarray]) -> None:
        write_tensors(file, arrays, {})

    def load(self, file: Path) -> dict[str, ort.OrtValue]:
        return {name: ort_value(array[None]) for name, array in map_tensors(file)[0].items()}

    def arguments(self, loaded: dict[str, ort.OrtValue]) -> Arguments:
        return loaded, None


class OnnxAdapter:
    """ONNX Runtime's own format."""

    def write(self, file: Path, arrays: Mapping[str, np.ndarray]) -> None:
        adapter = ort.AdapterFormat()
        adapter.set_parameters({name: ort_value(array[None]) for name, array in arrays.items()})
        adapter.export_adapter(str(file))

    def load(self, file: Path) -> ort.LoraAdapter:
        adapter = ort.LoraAdapter()
        adapter.Load(str(file))
        return adapter

    def arguments(self, loaded: ort.LoraAdapter) -> Arguments:
        options = ort.RunOptions()
        options.add_active_adapter(loaded)
        return {}, options


FORMATS: dict[str, Format] = {"safetensors": Safetensors(), "onnx_adapter": OnnxAdapter()}


class Step:
    """Decoder step of a bank.

    Args:
        bank: Folder of the bank.
        rows: Batch size.
    """

    def __init__(self, bank: Path, rows: int) -> None:
        session = open_session(bank / f"{_GRAPH}.onnx")
        self._session, sizes = session, {"q": 1, "s": _SOURCE, "room": _ROOM}
        values = {"lengths": np.array([_PAST]), "forbid_eos": np.array(False)}
        self._own = {}
        for entry in session.get_inputs():
            if not entry.name.startswith("adapter."):
                shape = [sizes.get(size, rows) if isinstance(size, str) else size for size in entry.shape]
                dtype = np.int64 if "int64" in entry.type else np.float32
                self._own[entry.name] = ort_value(values.get(entry.name, np.ones(shape, dtype)))

    def run(self, adapter: Mapping[str, ort.OrtValue], options: ort.RunOptions | None) -> np.ndarray:
        """Return the next token of each row, [rows, 1]."""
        return run_named(self._session, {**self._own, **adapter}, _OUTPUTS, options)[0]


def write_files(folder: Path, arrays: Mapping[str, np.ndarray], form: str, count: int) -> float:
    """Write `count` files of the same content and return the size of one, in MB."""
    folder.mkdir()
    for i in range(count):
        FORMATS[form].write(folder / f"{i:03d}", arrays)
    return (folder / "000").stat().st_size / 1e6


def measure_loading(bank: Path, form: str, folder: Path) -> dict[str, Any]:
    """Return the load time of the files of a folder, and the memory of a process that has used each of them.

    Raises:
        LoraFtError: The process died, or this system does not report memory by process.
    """
    command = [sys.executable, "-c", _SERVE, str(bank), form, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not (line := process.stdout.readline()):
            raise LoraFtError(
                f"the process that loads {folder} died", "run `python -m benchmarks.studies.adapter_files` again"
            )
        return {"seconds": float(line), **memory(process.pid)}
    finally:
        process.kill()
        process.communicate()


def measure_steps(bank: Path, files: Mapping[str, Path], rows: int, steps: int, rounds: int) -> dict[str, float]:
    """Return the time of a step whose rows share one adapter, in ms, for each format and with I/O binding.

    Raises:
        LoraFtError: The formats do not generate the same tokens.
    """
    from benchmarks.studies.bank import step_timer
    from lora_ft.export.runtime import Generator

    step, generator = Step(bank, rows), Generator.load(bank)
    loaded = {form: FORMATS[form].load(file) for form, file in files.items()}  # RunOptions holds no reference
    arguments = {form: FORMATS[form].arguments(adapter) for form, adapter in loaded.items()}
    first_tokens, *other_tokens = (step.run(*call) for call in arguments.values())
    if not all((first_tokens == tokens).all() for tokens in other_tokens):
        raise LoraFtError("the two formats of an adapter generate different tokens", "report this as a bug")

    def calls(form: str) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step.run(*arguments[form])
        return time.perf_counter() - began

    cases: dict[str, Callable[[], float]] = {form: partial(calls, form) for form in arguments}
    cases["bound"] = step_timer(generator, generator.adapters[:1] * rows, _SOURCE, steps)
    times: dict[str, list[float]] = {case: [] for case in cases}
    for turn in range(rounds + 1):
        for case, run in cases.items():
            seconds = run()
            if turn:  # the first turn allocates memory and is not counted
                times[case].append(1000 * seconds / steps)
    return {case: statistics.median(values) for case, values in times.items()}


def run(base: str, counts: Sequence[int], *, rank: int, rows: Sequence[int], steps: int, rounds: int) -> dict[str, Any]:
    """Return all figures for adapters on all linear layers of an int8 base."""
    from benchmarks.studies.bank import LINEAR, make_bank
    from lora_ft.export.runtime import Generator
    from lora_ft.models.bases import find_base

    loading = []
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        bank = Path(scratch, "bank")
        make_bank(find_base(base), bank, "int8", rank, LINEAR.split(","))
        adapters = Generator.load(bank).bank
        assert adapters is not None
        all_arrays = adapters.arrays(adapters.names[0])
        arrays = {name: all_arrays[name] for name in adapters.inputs[_GRAPH]}
        files = {}
        for count in counts:
            for form in FORMATS:
                folder = Path(scratch, f"{form}-{count}")
                size = write_files(folder, arrays, form, count)
                files[form] = folder / "000"
                figures = measure_loading(bank, form, folder)
                loading.append({"format": form, "adapters": count, "megabytes_each": size, **figures})
        timings = [{"rows": count, **measure_steps(bank, files, count, steps, rounds)} for count in rows]
    return {"rank": rank, "loading": loading, "steps": timings}


def tables(figures: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    from lora_ft.reports.markdown import table

    loading = [
        [
            row["format"],
            str(row["adapters"]),
            f"{row['megabytes_each']:.2f}",
            f"{1000 * row['seconds']:.1f}",
            f"{row['resident']:.0f}",
            f"{row['private']:.0f}",
        ]
        for row in figures["loading"]
    ]
    steps = [[str(row["rows"]), *(f"{row[case]:.2f}" for case in (*FORMATS, "bound"))] for row in figures["steps"]]
    return "\n\n".join(
        (
            table(["format", "adapters", "MB each", "load, ms", "resident, MB", "private, MB"], loading),
            table(["rows", *(f"{form}, ms/step" for form in FORMATS), "bound"], steps),
        )
    )


def main(
    base: str = "offline",
    counts: Annotated[str, typer.Option(help="Numbers of adapters to load, separated by commas.")] = "1,10,100",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 16,
    rows: Annotated[str, typer.Option(help="Batch sizes of a step, separated by commas.")] = "1,8",
    steps: Annotated[int, typer.Option(min=1, help="Decoder steps of one timing.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each case.")] = 11,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
) -> None:
    """Measure both formats on a base and print tables."""
    from lora_ft.doctor import environment

    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    figures = run(base, numbers(counts), rank=rank, rows=numbers(rows), steps=steps, rounds=rounds)
    if json_file is not None:
        write_json(json_file, {"environment": environment(), **figures})
    print(tables(figures))


if __name__ == "__main__":
    run_command(main)

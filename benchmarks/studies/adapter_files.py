"""An adapter as safetensors, which the runtime binds, against ONNX Runtime's `.onnx_adapter`: loading, memory, a step.

    python -m benchmarks.studies.adapter_files [--base offline] [--json FILE]

A `.onnx_adapter` goes to a call, not to a row (`RunOptions.add_active_adapter`): all rows of the call have that one,
so that it cannot mix them, and a bound call does not take it. So what both can do is compared: the step of some rows
that have one adapter. Both formats hold the same arrays, those of the step's graph; a graph refuses a `.onnx_adapter`
that holds more than it takes, so that an adapter would need one file for each graph.

Measured (results/adapter_files.json, FLAN-T5-small int8, r 16, two Zen 5 cores): 100 adapters load in 0.01 s against
0.18 s of safetensors, and take 5 % less memory in all. A step takes as long either way, and one that is bound, as the
runtime's are, a tenth to a fifth less than either format's at its best. Safetensors stayed for the rows that they can
mix, and as one file serves all graphs.
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

_GRAPH, _WANTED = "bank.step", ["next"]
_SOURCE, _ROOM, _PAST = 64, 64, 32  # tokens of a source, of a cache's room, and of what lies in it
# loads every file, takes a step with each, says how long loading took, and waits to be ended
_SERVE = """
import sys, time
from pathlib import Path
from benchmarks.studies.adapter_files import FORMATS, Step

step, form = Step(Path(sys.argv[1]), 1), FORMATS[sys.argv[2]]
files = sorted(Path(sys.argv[3]).iterdir())
began = time.perf_counter()
loaded = [form.load(file) for file in files]
seconds = time.perf_counter() - began
for one in loaded:
    step.run(*form.given(one))
print(seconds, flush=True)
sys.stdin.read()
"""

Given = tuple[Mapping[str, ort.OrtValue], ort.RunOptions | None]  # to a call, besides what all calls get


class Format(Protocol):
    """How an adapter lies in a file and comes to a call."""

    def write(self, file: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays, by the graph's inputs, without the axis of rows."""

    def load(self, file: Path) -> Any:
        """Make a file ready for calls."""

    def given(self, loaded: Any) -> Given:
        """What a call with it gets."""


class Safetensors:
    """As the runtime has it: mapped, each array an input."""

    def write(self, file: Path, arrays: Mapping[str, np.ndarray]) -> None:
        write_tensors(file, arrays, {})

    def load(self, file: Path) -> dict[str, ort.OrtValue]:
        return {name: ort_value(array[None]) for name, array in map_tensors(file)[0].items()}

    def given(self, loaded: dict[str, ort.OrtValue]) -> Given:
        return loaded, None


class OnnxAdapter:
    """ONNX Runtime's own."""

    def write(self, file: Path, arrays: Mapping[str, np.ndarray]) -> None:
        made = ort.AdapterFormat()
        made.set_parameters({name: ort_value(array[None]) for name, array in arrays.items()})
        made.export_adapter(str(file))

    def load(self, file: Path) -> ort.LoraAdapter:
        adapter = ort.LoraAdapter()
        adapter.Load(str(file))
        return adapter

    def given(self, loaded: ort.LoraAdapter) -> Given:
        options = ort.RunOptions()
        options.add_active_adapter(loaded)
        return {}, options


FORMATS: dict[str, Format] = {"safetensors": Safetensors(), "onnx_adapter": OnnxAdapter()}


class Step:
    """A decoding step of some rows of a bank.

    Args:
        bank: folder.
        rows: how many.
    """

    def __init__(self, bank: Path, rows: int) -> None:
        session = open_session(bank / f"{_GRAPH}.onnx")
        self._session, sizes = session, {"q": 1, "s": _SOURCE, "room": _ROOM}
        known = {"lengths": np.array([_PAST]), "early": np.array(False)}
        self._own = {}
        for entry in session.get_inputs():
            if not entry.name.startswith("adapter."):
                shape = [sizes.get(size, rows) if isinstance(size, str) else size for size in entry.shape]
                dtype = np.int64 if "int64" in entry.type else np.float32
                self._own[entry.name] = ort_value(known.get(entry.name, np.ones(shape, dtype)))

    def run(self, given: Mapping[str, ort.OrtValue], options: ort.RunOptions | None) -> np.ndarray:
        """The next token of each row [rows, 1]."""
        return run_named(self._session, {**self._own, **given}, _WANTED, options)[0]


def write_files(folder: Path, arrays: Mapping[str, np.ndarray], form: str, count: int) -> float:
    """So many files of the same content; the megabytes of one."""
    folder.mkdir()
    for i in range(count):
        FORMATS[form].write(folder / f"{i:03d}", arrays)
    return (folder / "000").stat().st_size / 1e6


def measure_loading(bank: Path, form: str, folder: Path) -> dict[str, Any]:
    """Seconds to load the files of a folder, and megabytes resident when each was used, in a process of its own.

    Raises:
        LoraFtError: the process died, or this system does not tell memory by process.
    """
    command = [sys.executable, "-c", _SERVE, str(bank), form, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not (line := process.stdout.readline()):
            raise LoraFtError(
                f"a process that loads {folder} died", "run `python -m benchmarks.studies.adapter_files` again"
            )
        return {"seconds": float(line), **memory(process.pid)}
    finally:
        process.kill()
        process.communicate()


def measure_steps(bank: Path, files: Mapping[str, Path], rows: int, steps: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a step whose rows have one adapter: given to each call by either format, and bound.

    Raises:
        LoraFtError: the formats do not give the same tokens.
    """
    from benchmarks.studies.bank import stepper
    from lora_ft.export.runtime import Generator

    step, generator = Step(bank, rows), Generator.load(bank)
    loaded = {form: FORMATS[form].load(file) for form, file in files.items()}  # kept: RunOptions only points there
    given = {form: FORMATS[form].given(one) for form, one in loaded.items()}
    first, *others = (step.run(*one) for one in given.values())
    if not all((first == other).all() for other in others):
        raise LoraFtError("an adapter gives other tokens in another format", "please report this")

    def calls(form: str) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step.run(*given[form])
        return time.perf_counter() - began

    cases: dict[str, Callable[[], float]] = {form: partial(calls, form) for form in given}
    cases["bound"] = stepper(generator, generator.adapters[:1] * rows, _SOURCE, steps)
    times: dict[str, list[float]] = {case: [] for case in cases}
    for turn in range(rounds + 1):
        for case, run in cases.items():
            seconds = run()
            if turn:  # the first one allocates
                times[case].append(1000 * seconds / steps)
    return {case: statistics.median(found) for case, found in times.items()}


def run(base: str, counts: Sequence[int], *, rank: int, rows: Sequence[int], steps: int, rounds: int) -> dict[str, Any]:
    """Every figure, of adapters on all linear layers of a base in int8."""
    from benchmarks.studies.bank import LINEAR, make_bank
    from lora_ft.export.runtime import Generator
    from lora_ft.models.bases import find_base

    loading = []
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        bank = Path(scratch, "bank")
        make_bank(find_base(base), bank, "int8", rank, LINEAR.split(","))
        held = Generator.load(bank).bank
        assert held is not None
        own = held.arrays(held.names[0])
        arrays = {name: own[name] for name in held.inputs[_GRAPH]}
        files = {}
        for count in counts:
            for form in FORMATS:
                folder = Path(scratch, f"{form}-{count}")
                size = write_files(folder, arrays, form, count)
                files[form] = folder / "000"
                figures = measure_loading(bank, form, folder)
                loading.append({"format": form, "adapters": count, "megabytes_each": size, **figures})
        taken = [{"rows": count, **measure_steps(bank, files, count, steps, rounds)} for count in rows]
    return {"rank": rank, "loading": loading, "steps": taken}


def tables(found: Mapping[str, Any]) -> str:
    """The figures in Markdown."""
    from lora_ft.reports.markdown import table

    loading = [
        [
            one["format"],
            str(one["adapters"]),
            f"{one['megabytes_each']:.2f}",
            f"{1000 * one['seconds']:.1f}",
            f"{one['resident']:.0f}",
            f"{one['private']:.0f}",
        ]
        for one in found["loading"]
    ]
    steps = [[str(one["rows"]), *(f"{one[case]:.2f}" for case in (*FORMATS, "bound"))] for one in found["steps"]]
    return "\n\n".join(
        (
            table(["format", "adapters", "MB each", "load, ms", "resident, MB", "private, MB"], loading),
            table(["rows", *(f"{form}, ms a step" for form in FORMATS), "bound"], steps),
        )
    )


def main(
    base: str = "offline",
    counts: Annotated[str, typer.Option(help="Adapters that are loaded.")] = "1,10,100",
    rank: Annotated[int, typer.Option(min=1)] = 16,
    rows: Annotated[str, typer.Option(help="Rows of a step.")] = "1,8",
    steps: Annotated[int, typer.Option(min=1)] = 32,
    rounds: Annotated[int, typer.Option(min=1)] = 11,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure there.")] = None,
) -> None:
    """Measure both formats on a base and print tables."""
    from lora_ft.doctor import environment

    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    found = run(base, numbers(counts), rank=rank, rows=numbers(rows), steps=steps, rounds=rounds)
    if json_file is not None:
        write_json(json_file, {"environment": environment(), **found})
    print(tables(found))


if __name__ == "__main__":
    run_command(main)

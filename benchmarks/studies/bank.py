"""Measure the cost of a bank of adapters: load time, memory, time of a step, and mixed requests.

    python -m benchmarks.studies.bank [--base offline] [--precision int8] [--json FILE]

Adapters are random, since the time of a step does not depend on their values. They adapt all linear layers, or the
layers of `--targets`. Ratios are computed within a round, in which every case has one turn. For mixed requests, one
bank is compared with one session per adapter.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.command import run_command
from benchmarks.studies.sharing import memory
from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import write_json
from lora_ft.core.progress import Silent
from lora_ft.core.sample_prompts import SENTENCES
from lora_ft.deployment.torch_reference import bundle_metadata, references_of, samples_of
from lora_ft.doctor import environment
from lora_ft.export.bundle.adapter_slots import LowRank
from lora_ft.export.bundle.assemble import read_model
from lora_ft.export.bundle.bank import BankAdapter, BankLayout, locked, store
from lora_ft.export.bundle.publish import write_bank
from lora_ft.export.bundle.source import ExportSource
from lora_ft.export.checkpoint.generation_config import read_generation
from lora_ft.export.checkpoint.reader import Checkpoint
from lora_ft.export.parity import Probe
from lora_ft.export.precision import parse
from lora_ft.export.runtime import manifest
from lora_ft.export.runtime.bank import TASK
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.safetensors_file import map_tensors
from lora_ft.models.bases import Base, find_base, load_model, load_tokenizer
from lora_ft.models.checkpoints import is_scaled
from lora_ft.reports.markdown import table

LINEAR = "q,k,v,o,wi,wi_0,wi_1,wo"
_LIMIT = 8  # tokens of the answers that a bank is verified on
_BATCH = 8  # rows answered together
# Script that loads a bank, answers a row with each adapter (eight rows at a time), prints the load time, and waits to
# be killed.
_SERVE = """
import sys, time
import numpy as np

began = time.perf_counter()
from lora_ft.export.runtime import Generator

model = Generator.load(sys.argv[1])
loaded = time.perf_counter() - began
names = model.adapters
ids = np.full((8, 32), 5)  # eight rows, independent of the number of adapters
for start in range(0, len(names), 8):
    batch = [names[(start + i) % len(names)] for i in range(8)]
    model.generate_ids(ids, np.ones_like(ids), adapter=batch, max_new_tokens=4, min_new_tokens=4)
print(loaded, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Settings:
    """Settings of the measurements.

    Attributes:
        precision: Precision of the base's weights.
        rank, targets: Rank of the adapters, and name suffixes of adapted layers.
        rows: Batch sizes of a step, each of which is a case.
        source: Prompt length, in tokens.
        steps: Decoder steps of one timing.
        rounds: Timings of each case.
        requests: Requests of the mixed stream.
    """

    precision: str
    rank: int
    targets: tuple[str, ...]
    rows: tuple[int, ...]
    source: int = 64
    steps: int = 32
    rounds: int = 11
    requests: int = 80


@dataclass(frozen=True)
class Loading:
    """Figures of a process that serves a bank.

    Attributes:
        adapters: Number of adapters.
        megabytes_each: Mean size of an adapter, in megabytes.
        seconds: Load time.
        resident: Resident memory, in megabytes.
    """

    adapters: int
    megabytes_each: float
    seconds: float
    resident: float


@dataclass(frozen=True)
class Step:
    """Time of a decoder step.

    Attributes:
        rows: Batch size.
        adapters: Number of different adapters in the batch.
        milliseconds: Median time.
        ratio: Time over the time of a step without adapters.
    """

    rows: int
    adapters: int
    milliseconds: float
    ratio: float


@dataclass(frozen=True)
class Stream:
    """Rows per second of mixed requests, with one bank and with one session per adapter."""

    adapters: int
    bank: float
    sessions: float


def random_adapter(checkpoint: Path, seed: int, rank: int, targets: Sequence[str]) -> dict[str, LowRank]:
    """Return an adapter with small random weights on the layers whose name suffix is in `targets`."""
    rng, weights = np.random.default_rng(seed), Checkpoint(checkpoint)
    adapter = {}
    for name in weights.names:
        layer = name.removesuffix(".weight")
        if "block" in layer and layer.rpartition(".")[2] in targets:
            outputs, inputs = weights.shape(name)
            a = rng.standard_normal((rank, inputs), np.float32) / np.float32(inputs**0.5)
            b = rng.standard_normal((outputs, rank), np.float32) * np.float32(0.01)
            adapter[layer] = LowRank(a, b)
    return adapter


def make_bank(base: Base, out: Path, precision: str, rank: int, targets: Sequence[str]) -> None:
    """Write a verified bank with one random adapter, named a0."""
    adapter = random_adapter(base.folder, 0, rank, targets)
    origin = replace(bundle_metadata(None, base.name, "", {}), generation={"max_new_tokens": _LIMIT})
    tokenizer, special = load_tokenizer(base.folder), read_generation(base.folder).special
    plain, changed = load_model(base.folder), load_model(base.folder)
    for layer, change in adapter.items():
        weight = changed.get_parameter(f"{layer}.weight")
        weight.data += weight.new_tensor(change.b @ change.a)
    answers = lambda model: list(references_of(model, tokenizer, SENTENCES, origin, Silent()))  # noqa: E731
    base_answers, adapted = answers(plain), answers(changed)
    samples = tuple(samples_of(None, tokenizer, special.start, Silent()))
    member = BankAdapter("a0", adapter, origin, tokenizer, lambda: adapted, Probe.of(adapted[0], special), samples)
    source = ExportSource(base.folder, tokenizer, origin, base_answers, base_answers[0], samples, is_scaled(plain))
    write_bank(source, [member], out, precision=parse(precision))


def fill(base: Base, bank: Path, count: int, rank: int, targets: Sequence[str]) -> None:
    """Add random adapters to a bank without verifying them, until it has `count`."""
    (architecture, weights), room = read_model(base.folder), BankLayout.read(bank)
    samples = tuple(samples_of(None, load_tokenizer(base.folder), architecture.special.start, Silent()))[:2]
    with locked(bank) as content:
        adapters = content[manifest.ADAPTERS]
        task = map_tensors(bank / manifest.adapter_files(content)[0])[1][TASK]
        for i in range(len(adapters), count):
            arrays = room.arrays(random_adapter(base.folder, i, rank, targets), architecture, weights, samples)
            adapters[f"a{i}"] = adapters["a0"] | store(bank, f"a{i}", arrays, task)
        write_json(bank / manifest.NAME, content)


def measure_loading(bank: Path) -> Loading:
    """Return load time and memory of a process that has used every adapter of a bank.

    Raises:
        LoraFtError: The process died, or this system does not report memory by process.
    """
    command = [sys.executable, "-c", _SERVE, str(bank)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise LoraFtError(f"the process that serves {bank} died", "run `lora-ft generate` on it alone")
        resident = memory(process.pid)["resident"]
    finally:
        process.kill()
        process.communicate()
    sizes = [path.stat().st_size for path in (bank / "adapters").iterdir()]
    return Loading(len(sizes), statistics.mean(sizes) / 1e6, float(line), resident)


def measure_steps(generator: Generator, settings: Settings) -> list[Step]:
    """Return the time of a step with 0 adapters, 1 adapter, one adapter for two rows, and one for each row."""
    cases: dict[tuple[int, int], Callable[[], float]] = {}
    for count in settings.rows:
        for distinct in sorted({0, 1, count // 2, count} & set(range(len(generator.adapters) + 1))):
            names = [generator.adapters[i % distinct] if distinct else None for i in range(count)]
            cases[count, distinct] = step_timer(generator, names, settings.source, settings.steps)
    times: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    for turn in range(settings.rounds + 1):
        for case, run in cases.items():
            seconds = run()
            if turn:  # the first turn allocates memory and is not counted
                times[case].append(1000 * seconds / settings.steps)
    return [
        Step(
            count,
            distinct,
            statistics.median(values),
            statistics.median(value / plain for value, plain in zip(values, times[count, 0], strict=True)),
        )
        for (count, distinct), values in times.items()
    ]


def step_timer(generator: Generator, names: Sequence[str | None], source: int, steps: int) -> Callable[[], float]:
    """Return a function that runs `steps` steps of rows with these adapters and returns their time, in seconds."""
    model = generator.model
    ids = np.random.default_rng(0).integers(3, generator.tokenizer.size, (len(names), source))
    encoded = model.encode(ids, np.ones_like(ids), generator.bank.select(names) if generator.bank else None)

    def run() -> float:
        cache, tokens = model.cache(len(names)), np.zeros((len(names), 1), np.int64)
        model.step(encoded, cache, tokens)
        began = time.perf_counter()
        for _ in range(steps):
            model.step(encoded, cache, tokens)
        return time.perf_counter() - began

    return run


def measure_stream(bank: Path, settings: Settings) -> Stream:
    """Answer mixed requests, eight at a time, as one batch of the bank or as one batch per adapter in its session.

    The sessions run the base's graphs, since a graph with merged weights takes equally long.
    """
    generator = Generator.load(bank)
    sessions = {name: Generator.load(bank) for name in generator.adapters}
    rng = np.random.default_rng(0)
    windows = [rng.choice(generator.adapters, _BATCH).tolist() for _ in range(settings.requests // _BATCH)]
    ids = rng.integers(3, generator.tokenizer.size, (_BATCH, settings.source))
    options: dict[str, Any] = {
        "max_new_tokens": settings.steps,
        "min_new_tokens": settings.steps,
        "prompt_lookup": False,
    }

    def mixed(names: list[str]) -> None:
        generator.generate_ids(ids, np.ones_like(ids), adapter=names, **options)

    def apart(names: list[str]) -> None:
        for name in set(names):
            adapter_ids = ids[[i for i, row_name in enumerate(names) if row_name == name]]
            sessions[name].generate_ids(adapter_ids, np.ones_like(adapter_ids), **options)

    mixed(generator.adapters[:1] * _BATCH)
    for name in sessions:
        apart([name])
    speeds = {}
    for kind, serve in (("bank", mixed), ("sessions", apart)):
        began = time.perf_counter()
        for names in windows:
            serve(names)
        speeds[kind] = _BATCH * len(windows) / (time.perf_counter() - began)
    return Stream(len(sessions), **speeds)


def run(base: Base, counts: Sequence[int], settings: Settings) -> dict[str, Any]:
    """Return all figures for banks with `counts` adapters."""
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        bank = Path(scratch, "bank")
        make_bank(base, bank, settings.precision, settings.rank, settings.targets)
        loaded, streams = [], []
        for count in sorted(counts):
            fill(base, bank, count, settings.rank, settings.targets)
            loaded.append(measure_loading(bank))
            if 1 < count <= 10:  # more sessions do not fit into memory
                streams.append(measure_stream(bank, settings))
        steps = measure_steps(Generator.load(bank), settings)
    return {
        "precision": settings.precision,
        "rank": settings.rank,
        "targets": ",".join(settings.targets),
        "source": settings.source,
        "steps": settings.steps,
        "loading": [asdict(process) for process in loaded],
        "steps_of": [asdict(step) for step in steps],
        "streams": [asdict(stream) for stream in streams],
    }


def tables(figures: dict[str, Any]) -> str:
    """Return the figures in Markdown."""
    first = figures["loading"][0]
    alone = first["resident"] - first["adapters"] * first["megabytes_each"]
    loading = [
        [
            str(row["adapters"]),
            f"{row['seconds']:.2f}",
            f"{row['resident']:.0f}",
            f"{row['resident'] / (alone + row['adapters'] * row['megabytes_each']) - 1:+.0%}",
        ]
        for row in figures["loading"]
    ]
    steps = [
        [str(row["rows"]), str(row["adapters"]), f"{row['milliseconds']:.2f}", f"{row['ratio'] - 1:+.0%}"]
        for row in figures["steps_of"]
    ]
    streams = [[str(row["adapters"]), f"{row['bank']:.1f}", f"{row['sessions']:.1f}"] for row in figures["streams"]]
    parts = [
        table(["adapters", "load, s", "resident, MB", "more than base + adapters"], loading),
        table(["rows", "different adapters", "ms/step", "more than the base"], steps),
        table(["adapters", "bank, rows/s", "sessions, rows/s"], streams) if streams else "",
        f"{figures['precision']}, rank {figures['rank']} on {figures['targets']}; "
        f"an adapter takes {first['megabytes_each']:.1f} MB",
    ]
    return "\n\n".join(filter(None, parts))


def main(
    base: str = "offline",
    precision: str = "int8",
    counts: Annotated[str, typer.Option(help="Numbers of adapters in a bank, separated by commas.")] = "1,10,100",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 16,
    targets: Annotated[str, typer.Option(help="Name suffixes of adapted layers, separated by commas.")] = LINEAR,
    rows: Annotated[str, typer.Option(help="Batch sizes of a step, separated by commas.")] = "1,8",
    source: Annotated[int, typer.Option(min=1, help="Prompt length, in tokens.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Decoder steps of one timing.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each case.")] = 11,
    requests: Annotated[int, typer.Option(min=8, help="Requests of the mixed stream.")] = 80,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
) -> None:
    """Measure banks of adapters and print tables."""
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    settings = Settings(
        precision, rank, tuple(targets.split(",")), tuple(numbers(rows)), source, steps, rounds, requests
    )
    figures = run(find_base(base), numbers(counts), settings)
    if json_file is not None:
        write_json(json_file, {"environment": environment(), **figures})
    print(tables(figures))


if __name__ == "__main__":
    run_command(main)

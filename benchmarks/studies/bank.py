"""What a bank of adapters costs: loading, memory, time of a step, and a mixed stream against a session each.

    python -m benchmarks.studies.bank [--base offline] [--precision int8] [--json FILE]

Adapters are random, of all linear layers or of those named; the time of a step does not depend on their values. Ratios
are taken within a round, in which every case has its turn.
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
from lora_ft.export.onnx.precision import parse
from lora_ft.export.parity import Probe
from lora_ft.export.runtime import manifest
from lora_ft.export.runtime.bank import TASK
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.safetensors_file import map_tensors
from lora_ft.models.bases import Base, find_base, load_model, load_tokenizer
from lora_ft.models.checkpoints import is_scaled
from lora_ft.reports.markdown import table

LINEAR = "q,k,v,o,wi,wi_0,wi_1,wo"
_LIMIT = 8  # tokens of the answers that a bank is verified on
# loads a bank, answers a row with each adapter, eight rows at a time, says how long loading took, and waits to be ended
_SERVE = """
import sys, time
import numpy as np

began = time.perf_counter()
from lora_ft.export.runtime import Generator

model = Generator.load(sys.argv[1])
loaded = time.perf_counter() - began
names = model.adapters
ids = np.full((8, 32), 5)  # as many rows for one adapter as for a hundred
for start in range(0, len(names), 8):
    some = [names[(start + i) % len(names)] for i in range(8)]
    model.generate_ids(ids, np.ones_like(ids), adapter=some, max_new_tokens=4, min_new_tokens=4)
print(loaded, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Loaded:
    """A process that serves a bank: how many adapters it has, the bytes of one, seconds to load, megabytes resident."""

    adapters: int
    megabytes_each: float
    seconds: float
    resident: float


@dataclass(frozen=True)
class Step:
    """A step of some rows with so many unlike adapters: milliseconds, and times as long as without adapters."""

    rows: int
    adapters: int
    milliseconds: float
    ratio: float


@dataclass(frozen=True)
class Stream:
    """Rows a second of requests that each want one of some adapters: from a bank, and from a session for each."""

    adapters: int
    bank: float
    sessions: float


def random_adapter(checkpoint: Path, seed: int, rank: int, targets: Sequence[str]) -> dict[str, LowRank]:
    """A small one of the layers whose names end so."""
    rng, weights = np.random.default_rng(seed), Checkpoint(checkpoint)
    found = {}
    for name in weights.names:
        layer = name.removesuffix(".weight")
        if "block" in layer and layer.rpartition(".")[2] in targets:
            outputs, inputs = weights.shape(name)
            a = rng.standard_normal((rank, inputs), np.float32) / np.float32(inputs**0.5)
            b = rng.standard_normal((outputs, rank), np.float32) * np.float32(0.01)
            found[layer] = LowRank(a, b)
    return found


def make_bank(base: Base, out: Path, precision: str, rank: int, targets: Sequence[str]) -> None:
    """A verified bank with one random adapter, by the name of a0."""
    adapter = random_adapter(base.folder, 0, rank, targets)
    origin = replace(bundle_metadata(None, base.name, "", {}), generation={"max_new_tokens": _LIMIT})
    tokenizer, special = load_tokenizer(base.folder), read_generation(base.folder).special
    plain, changed = load_model(base.folder), load_model(base.folder)
    for layer, change in adapter.items():
        weight = changed.get_parameter(f"{layer}.weight")
        weight.data += weight.new_tensor(change.b @ change.a)
    answers = lambda model: list(references_of(model, tokenizer, SENTENCES, origin, Silent()))  # noqa: E731
    sentences, own = answers(plain), answers(changed)
    samples = tuple(samples_of(None, tokenizer, special.start, Silent()))
    member = BankAdapter("a0", adapter, origin, tokenizer, lambda: own, Probe.of(own[0], special), samples)
    source = ExportSource(base.folder, tokenizer, origin, sentences, sentences[0], samples, is_scaled(plain))
    write_bank(source, [member], out, precision=parse(precision))


def fill(base: Base, bank: Path, count: int, rank: int, targets: Sequence[str]) -> None:
    """Put further random adapters into a bank, unverified, until it has so many."""
    (architecture, weights), room = read_model(base.folder), BankLayout.read(bank)
    samples = tuple(samples_of(None, load_tokenizer(base.folder), architecture.special.start, Silent()))[:2]
    with locked(bank) as content:
        adapters = content[manifest.ADAPTERS]
        task = map_tensors(bank / manifest.adapter_files(content)[0])[1][TASK]
        for i in range(len(adapters), count):
            arrays = room.arrays(random_adapter(base.folder, i, rank, targets), architecture, weights, samples)
            adapters[f"a{i}"] = adapters["a0"] | store(bank, f"a{i}", arrays, task)
        write_json(bank / manifest.NAME, content)


def measure_loading(bank: Path) -> Loaded:
    """In a process of its own, with every adapter used.

    Raises:
        LoraFtError: the process died, or this system does not tell memory by process.
    """
    command = [sys.executable, "-c", _SERVE, str(bank)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise LoraFtError(f"a process that serves {bank} died", "run it alone: `lora-ft generate`")
        resident = memory(process.pid)["resident"]
    finally:
        process.kill()
        process.communicate()
    sizes = [path.stat().st_size for path in (bank / "adapters").iterdir()]
    return Loaded(len(sizes), statistics.mean(sizes) / 1e6, float(line), resident)


def measure_steps(generator: Generator, rows: Sequence[int], source: int, steps: int, rounds: int) -> list[Step]:
    """Of the base and of rows with one adapter, with half as many unlike ones as rows, and with unlike ones."""
    cases: dict[tuple[int, int], Callable[[], float]] = {}
    for count in rows:
        for distinct in sorted({0, 1, count // 2, count} & set(range(len(generator.adapters) + 1))):
            names = [generator.adapters[i % distinct] if distinct else None for i in range(count)]
            cases[count, distinct] = stepper(generator, names, source, steps)
    times: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    for turn in range(rounds + 1):
        for case, run in cases.items():
            seconds = run()
            if turn:  # the first one allocates
                times[case].append(1000 * seconds / steps)
    return [
        Step(
            count,
            distinct,
            statistics.median(found),
            statistics.median(one / plain for one, plain in zip(found, times[count, 0], strict=True)),
        )
        for (count, distinct), found in times.items()
    ]


def stepper(generator: Generator, names: Sequence[str | None], source: int, steps: int) -> Callable[[], float]:
    """What takes some steps of these rows and says how many seconds they took, without the encoder."""
    model = generator.model
    ids = np.random.default_rng(0).integers(3, generator.tokenizer.size, (len(names), source))
    encoded = model.encode(ids, np.ones_like(ids), generator.bank.choose(names) if generator.bank else None)

    def run() -> float:
        cache, tokens = model.cache(len(names)), np.zeros((len(names), 1), np.int64)
        model.step(encoded, cache, tokens)
        began = time.perf_counter()
        for _ in range(steps):
            model.step(encoded, cache, tokens)
        return time.perf_counter() - began

    return run


def measure_stream(bank: Path, requests: int, source: int, new: int) -> Stream:
    """Requests that come eight at a time: one batch of the bank, or a batch in the session of each adapter.

    An adapter's own session is the base's graphs here: merged weights take as long.
    """
    generator = Generator.load(bank)
    sessions = {name: Generator.load(bank) for name in generator.adapters}
    rng = np.random.default_rng(0)
    windows = [rng.choice(generator.adapters, 8).tolist() for _ in range(requests // 8)]
    ids = rng.integers(3, generator.tokenizer.size, (8, source))
    options: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "prompt_lookup": False}

    def mixed(names: list[str]) -> None:
        generator.generate_ids(ids, np.ones_like(ids), adapter=names, **options)

    def apart(names: list[str]) -> None:
        for name in set(names):
            own = ids[[i for i, other in enumerate(names) if other == name]]
            sessions[name].generate_ids(own, np.ones_like(own), **options)

    mixed(generator.adapters[:1] * 8)
    for name in sessions:
        apart([name])
    found = {}
    for kind, serve in (("bank", mixed), ("sessions", apart)):
        began = time.perf_counter()
        for names in windows:
            serve(names)
        found[kind] = 8 * len(windows) / (time.perf_counter() - began)
    return Stream(len(sessions), **found)


def run(
    base: Base,
    counts: Sequence[int],
    *,
    precision: str,
    rank: int,
    targets: Sequence[str],
    rows: Sequence[int],
    source: int,
    steps: int,
    rounds: int,
    requests: int,
) -> dict[str, Any]:
    """Every figure, for banks of so many adapters."""
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        bank = Path(scratch, "bank")
        make_bank(base, bank, precision, rank, targets)
        loaded, streams = [], []
        for count in sorted(counts):
            fill(base, bank, count, rank, targets)
            loaded.append(measure_loading(bank))
            if 1 < count <= 10:  # more sessions than that take more memory than machines have
                streams.append(measure_stream(bank, requests, source, steps))
        found = measure_steps(Generator.load(bank), rows, source, steps, rounds)
    return {
        "precision": precision,
        "rank": rank,
        "targets": ",".join(targets),
        "source": source,
        "steps": steps,
        "loading": [asdict(one) for one in loaded],
        "steps_of": [asdict(one) for one in found],
        "streams": [asdict(one) for one in streams],
    }


def tables(found: dict[str, Any]) -> str:
    """The figures in Markdown."""
    first = found["loading"][0]
    alone = first["resident"] - first["adapters"] * first["megabytes_each"]
    loading = [
        [
            str(one["adapters"]),
            f"{one['seconds']:.2f}",
            f"{one['resident']:.0f}",
            f"{one['resident'] / (alone + one['adapters'] * one['megabytes_each']) - 1:+.0%}",
        ]
        for one in found["loading"]
    ]
    steps = [
        [str(one["rows"]), str(one["adapters"]), f"{one['milliseconds']:.2f}", f"{one['ratio'] - 1:+.0%}"]
        for one in found["steps_of"]
    ]
    streams = [[str(one["adapters"]), f"{one['bank']:.1f}", f"{one['sessions']:.1f}"] for one in found["streams"]]
    parts = [
        table(["adapters", "load, s", "resident, MB", "over base + adapters"], loading),
        table(["rows", "unlike adapters", "ms a step", "over the base"], steps),
        table(["adapters", "bank, rows/s", "sessions, rows/s"], streams) if streams else "",
        f"{found['precision']}, r {found['rank']} on {found['targets']}; "
        f"an adapter has {first['megabytes_each']:.1f} MB",
    ]
    return "\n\n".join(filter(None, parts))


def main(
    base: str = "offline",
    precision: str = "int8",
    counts: Annotated[str, typer.Option(help="Adapters of the banks.")] = "1,10,100",
    rank: Annotated[int, typer.Option(min=1)] = 16,
    targets: Annotated[str, typer.Option(help="Ends of the adapted layers' names.")] = LINEAR,
    rows: Annotated[str, typer.Option(help="Rows of a step.")] = "1,8",
    source: Annotated[int, typer.Option(min=1, help="Tokens in.")] = 64,
    steps: Annotated[int, typer.Option(min=1)] = 32,
    rounds: Annotated[int, typer.Option(min=1)] = 11,
    requests: Annotated[int, typer.Option(min=8)] = 80,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure there.")] = None,
) -> None:
    """Measure banks on a base and print tables."""
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    found = run(
        find_base(base),
        numbers(counts),
        precision=precision,
        rank=rank,
        targets=targets.split(","),
        rows=numbers(rows),
        source=source,
        steps=steps,
        rounds=rounds,
        requests=requests,
    )
    if json_file is not None:
        write_json(json_file, {"environment": environment(), **found})
    print(tables(found))


if __name__ == "__main__":
    run_command(main)

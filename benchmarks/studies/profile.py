"""Profile a bundle's encoder and decoder step by part and operator, and compare the step with the roofline.

    python -m benchmarks.studies.profile BUNDLE... [--batch 8] [--source 128] [--json FILE]

ONNX Runtime's profiler adds overhead, so its times are scaled to the time of a call without the profiler. The roofline
of a step is the size of its weights, keys and values, over the measured memory bandwidth.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime as ort
import typer

from benchmarks.command import run_command
from lora_ft.bench.roofline import DRAM_BLOCK, read_bandwidth, stored_bytes
from lora_ft.core.files import write_json
from lora_ft.doctor import environment
from lora_ft.export.runtime import Generator, session
from lora_ft.reports.markdown import table

_STEP = 40  # profiled position of the decoder: the middle of an answer
_ROUNDS = 25
_LAST, _CROSS = "choosing the token", "attention over the source"
# Part by operator, for nodes without a weight among their inputs.
_OPERATORS = {
    "GroupQueryAttention": "self-attention",
    "MultiHeadAttention": "self-attention",
    "SkipSimplifiedLayerNormalization": "norms",
    "SimplifiedLayerNormalization": "norms",
}
# Part by a substring of the name of a weight or an input.
_WEIGHTS = {
    "EncDecAttention": _CROSS,
    "cross.": _CROSS,
    "SelfAttention": "self-attention",
    "DenseReluDense": "feed-forward",
    "lm_head": "head",
    "shared": "embedding",
}


@dataclass(frozen=True)
class Part:
    """Time of a part of a graph in one call, in milliseconds: the total, and by operator."""

    name: str
    milliseconds: float
    operators: dict[str, float]


@dataclass(frozen=True)
class Profile:
    """Profile of one bundle at one batch size.

    Attributes:
        precision, batch, source: Precision, rows, and prompt length in tokens.
        encoder, step: Time of a call without the profiler, in milliseconds.
        weights, keys_and_values: Size of the data that a step reads, in megabytes.
        bandwidth: Memory bandwidth, in gigabytes per second.
        parts: Parts of each graph, the longest first.
    """

    precision: str
    batch: int
    source: int
    encoder: float
    step: float
    weights: float
    keys_and_values: float
    bandwidth: float
    parts: dict[str, list[Part]]

    @property
    def floor(self) -> float:
        """Return the time to read the data of a step, in milliseconds."""
        return (self.weights + self.keys_and_values) / self.bandwidth


def measure(bundle: Path, batch: int, source: int) -> Profile:
    """Time the bundle's graphs, then profile them."""
    calls = _calls(Generator.load(bundle), batch, source)
    medians = {graph: _median(call) for graph, call in calls.items()}
    parts = {}
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        for graph, seconds in medians.items():
            times = _profiled(bundle, graph, batch, source, Path(scratch, graph))
            scale = 1000 * seconds / sum(sum(kinds.values()) for kinds in times.values())
            parts[graph] = sorted(
                (
                    Part(
                        part,
                        scale * sum(kinds.values()),
                        {kind: scale * microseconds for kind, microseconds in kinds.items()},
                    )
                    for part, kinds in times.items()
                ),
                key=lambda part: -part.milliseconds,
            )
    generator = Generator.load(bundle)
    cross = generator.model.encode(*_sources(generator, batch, source)).values[1:]
    weights = stored_bytes(bundle) / 1e6
    return Profile(
        generator.manifest["precision"],
        batch,
        source,
        1000 * medians["encoder"],
        1000 * medians["step"],
        weights,
        sum(value.numpy().nbytes for value in cross) / 1e6,
        read_bandwidth(DRAM_BLOCK) / 1e9,
        parts,
    )


def _sources(generator: Generator, batch: int, source: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(3, generator.tokenizer.size, (batch, source))
    return ids, np.ones_like(ids)


def _calls(generator: Generator, batch: int, source: int) -> dict[str, Callable[[], Any]]:
    """Return a function for each graph, which repeats the same call of it."""
    model, sources = generator.model, _sources(generator, batch, source)
    encoded, cache, tokens = model.encode(*sources), model.cache(batch), np.full((batch, 1), 5)
    for _ in range(_STEP):
        model.step(encoded, cache, tokens)

    def step() -> None:
        model.step(encoded, cache, tokens)
        cache.forget(np.ones(batch, np.int64))

    return {"encoder": lambda: model.encode(*sources), "step": step}


def _median(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _profiled(bundle: Path, graph: str, batch: int, source: int, prefix: Path) -> dict[str, dict[str, float]]:
    """Return the time of all calls of a graph by part and operator, in microseconds."""
    generator = Generator.load(bundle)
    options = session._options

    def profiling(threads: int) -> ort.SessionOptions:
        session_options = options(threads)
        session_options.enable_profiling, session_options.profile_file_prefix = True, str(prefix)
        return session_options

    session._options = profiling
    try:
        call = _calls(generator, batch, source)[graph]
        for _ in range(_ROUNDS):
            call()
    finally:
        session._options = options
    trace = Path(generator.model._session(graph).end_profiling())
    names = part_of(onnx.load(bundle / f"{graph}.onnx", load_external_data=False).graph)
    times: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in json.loads(trace.read_text(encoding="utf-8")):
        name = event["name"].removesuffix("_kernel_time")
        if event["cat"] == "Node" and name != event["name"]:
            kind = event["args"]["op_name"]
            times[names.get(name) or _OPERATORS.get(kind, "rest")][kind] += event["dur"]
    return times


def part_of(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the part of each node by name: the part of its weight, else of its operator, else of the next node."""
    # Part of the first node that uses a value. The decoder attends to the outputs of the encoder.
    part_by_value = {value.name: _CROSS for value in graph.output if value.name.startswith("cross.")}
    parts = {}
    for node in reversed(graph.node):
        named = (node_part for name in node.input for piece, node_part in _WEIGHTS.items() if piece in name)
        node_part = next(named, None) or _OPERATORS.get(node.op_type)
        parts[node.name] = node_part or next(
            (part_by_value[name] for name in node.output if name in part_by_value), _LAST
        )
        part_by_value |= dict.fromkeys(node.input, parts[node.name])
    return parts


def text(profile: Profile) -> str:
    """Return the profile in Markdown."""
    lines = []
    for graph, total in (("encoder", profile.encoder), ("step", profile.step)):
        for part in profile.parts[graph]:
            longest = sorted(part.operators.items(), key=lambda item: -item[1])[:3]
            kinds = ", ".join(f"{kind} {milliseconds:.2f}" for kind, milliseconds in longest)
            lines.append((graph, part.name, f"{part.milliseconds:.2f}", f"{part.milliseconds / total:.0%}", kinds))
    return "\n".join(
        [
            table(["graph", "part", "ms", "share", "slowest operators, ms"], lines, words=2),
            "",
            f"{profile.precision}, {profile.batch} rows of {profile.source} tokens: encoder {profile.encoder:.1f} ms, "
            f"step {profile.step:.2f} ms. A step reads {profile.weights:.1f} MB of weights and "
            f"{profile.keys_and_values:.1f} MB of the prompts' keys and values, which takes at least "
            f"{profile.floor:.2f} ms at {profile.bandwidth:.0f} GB/s.",
        ]
    )


def main(
    bundles: list[Path],
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 8,
    source: Annotated[int, typer.Option(min=1, help="Prompt length, in tokens.")] = 128,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
) -> None:
    """Profile bundles and print a table for each one."""
    profiles = [measure(bundle, batch, source) for bundle in bundles]
    if json_file is not None:
        write_json(json_file, {"environment": environment(), "profiles": [asdict(profile) for profile in profiles]})
    print("\n\n".join(map(text, profiles)))


if __name__ == "__main__":
    run_command(main)

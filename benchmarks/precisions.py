"""What each precision of one model costs and gives: export time, size, ROUGE against fp32, latency, share of the floor.

    python -m benchmarks.precisions RUN --out FOLDER [--peers PYTHON] [--json FILE]

RUN is a trained run. With `--peers`, an interpreter that has optimum-intel and ctranslate2, those engines take turns
with ours on the same merged model. The floor of a step at batch 1 is the time that reading its weights once takes at
the bandwidth measured here, with as many threads and over as many bytes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.latency import Engine, compare
from export.files import folder_size, read_json, write_json
from export.precision import candidates
from export.runtime import Generator
from export.runtime.cpu import allowed_cpus
from lora_ft.cli.screen import Screen
from lora_ft.data import load_splits
from lora_ft.doctor import environment
from lora_ft.export_run import export
from lora_ft.merge import merge
from lora_ft.metrics import estimate, score
from lora_ft.precision import cpu_flags
from lora_ft.runs import Run

PEERS = ("openvino-fp32", "openvino-bf16", "openvino-int8", "openvino-int4", "ctranslate2-fp32", "ctranslate2-int8")


def read_bandwidth(size: int, rounds: int = 15) -> float:
    """Bytes a second that this process's cores read out of a block of so many bytes, the best of some rounds."""
    import torch

    torch.set_num_threads(allowed_cpus())
    block, best = torch.ones(size // 4), 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        block.sum().item()
        best = max(best, size / (time.perf_counter() - began))
    return best


def step_bytes(bundle: Path) -> int:
    """Bytes of weights that one step of the decoder reads: all that its graph refers to but the embedding's rows."""
    import onnx

    graph = onnx.load(bundle / "step.onnx", load_external_data=False).graph
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    lengths = (
        int(next(entry.value for entry in tensor.external_data if entry.key == "length"))
        for tensor in graph.initializer
        if tensor.external_data and tensor.name not in looked_up
    )
    return sum(lengths)


def measure(run: Path, out: Path, rows: int, peers: str, screen: Screen, found: dict[str, Any]) -> Iterator[None]:
    """Fill in every figure that is not in `found` yet, stage by stage: all of them take half an hour."""
    checkpoint = out / "checkpoint"
    bundles = {str(precision): out / str(precision) for precision in candidates("cpu")}
    if "quality" not in found:
        merge(Run(run), checkpoint, overwrite=True, progress=screen)
        seconds = {}
        for name, folder in bundles.items():
            began = time.perf_counter()
            export(str(checkpoint), folder, precision=name, score_rows=1, verify_rows=1, force=True, overwrite=True,
                   progress=screen)  # fmt: skip
            seconds[name] = time.perf_counter() - began
        found["environment"] = environment()
        found["export_seconds_with_verification_of_one_row"] = seconds
        found["megabytes"] = {name: folder_size(folder) / 1e6 for name, folder in bundles.items()}
        found["quality"] = _quality(Run(run), bundles, rows, screen)
        yield
    if "latency" not in found:
        engines = [Engine("onnx", folder, label=name) for name, folder in bundles.items()]
        engines.append(Engine("torch", checkpoint))
        if peers:
            engines += [Engine(kind, checkpoint, peers) for kind in PEERS if "bf16" not in kind or has_bf16()]
        screen.stage("timing", 14)
        found["latency"] = [asdict(entry) for entry in compare(engines, done=screen.advance)]
        yield
    if "floor" not in found:
        found["floor"] = {name: _floor(folder, found["latency"][0]["source"]) for name, folder in bundles.items()}
        yield


def has_bf16() -> bool:
    """Whether the processor computes in bfloat16; without, OpenVINO emulates it at a tenth of the speed."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def _quality(run: Run, bundles: dict[str, Path], rows: int, screen: Screen) -> dict[str, Any]:
    """ROUGE-1 of each bundle on test rows, and the paired difference from fp32."""
    task = run.task
    limit = task.data.limit.model_copy(update={"test": rows})  # the run may have scored fewer
    task = task.model_copy(update={"data": task.data.model_copy(update={"limit": limit})})
    examples = load_splits(task, ["test"]).test
    found: dict[str, Any] = {}
    exact: tuple[np.ndarray, list[str]] | None = None
    for name, folder in bundles.items():
        screen.stage(f"scoring {name}", len(examples))
        generator = Generator.load(folder)
        prompts = [example.prompt for example in examples]
        answers = generator.tokenizer.decode([a.tokens for a in generator.answer(prompts, done=screen.advance)])
        scores = score("rouge1", answers, [example.references for example in examples], use_stemmer=True)
        exact = exact or (scores, answers)
        found[name] = {
            "rouge1": asdict(estimate(scores, seed=0, resamples=1000)),
            "difference": asdict(estimate(scores - exact[0], seed=0, resamples=1000)),
            "identical": statistics.mean(a == b for a, b in zip(answers, exact[1], strict=True)),
        }
    return found


def _floor(bundle: Path, source: int) -> dict[str, float]:
    """What a step costs at batch 1, and what reading its weights would."""
    size = step_bytes(bundle)
    bandwidth = read_bandwidth(size)
    generator = Generator.load(bundle)
    ids = np.random.default_rng(0).integers(3, 30000, (1, source))
    times = []
    for _ in range(7):
        began = time.perf_counter()
        generator.generate_ids(ids, np.ones_like(ids), max_new_tokens=1)
        middle = time.perf_counter()
        generator.generate_ids(ids, np.ones_like(ids), max_new_tokens=65, min_new_tokens=65, prompt_lookup=False)
        times.append((time.perf_counter() - middle - (middle - began)) / 64)
    step = statistics.median(times)
    return {
        "step_milliseconds": 1000 * step,
        "megabytes": size / 1e6,
        "gigabytes_per_second": bandwidth / 1e9,
        "floor_milliseconds": 1000 * size / bandwidth,
        "times_the_floor": step * bandwidth / size,
    }


def _main(
    run: Path,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and the bundles.")] = Path("runs/precisions"),
    rows: Annotated[int, typer.Option(min=1, help="Test rows to score.")] = 500,
    peers: Annotated[str, typer.Option(help="Interpreter that has optimum-intel and ctranslate2.")] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Written after each stage; a stage that it holds is not repeated.")
    ] = None,
) -> None:
    """Run it and print the figures."""
    found = read_json(json_file) if json_file and json_file.is_file() else {}
    with Screen() as screen:
        for _ in measure(run, out, rows, peers, screen, found):
            if json_file:
                write_json(json_file, found)
    for name, quality in found["quality"].items():
        floor, difference = found["floor"][name], quality["difference"]
        print(
            f"{name:8} export {found['export_seconds_with_verification_of_one_row'][name]:5.1f} s   "
            f"ROUGE-1 {quality['rouge1']['mean']:.1f} "
            f"({difference['mean']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}], "
            f"{quality['identical']:.0%} identical)   step {floor['step_milliseconds']:.2f} ms, "
            f"{floor['times_the_floor']:.2f} times its floor"
        )
    for entry in found["latency"]:
        print(f"batch {entry['batch']}, {entry['source']} in, {entry['new']} out")
        for name, seconds in entry["median"].items():
            print(f"  {name:18} {1000 * seconds:7.0f} ms")


if __name__ == "__main__":
    typer.run(_main)

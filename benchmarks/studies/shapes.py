"""Time and memory of large batches and long sources, by shape of the model: FLAN-T5-small, -base and -large.

    python -m benchmarks.studies.shapes [--case small:32x512] [--engine onnx/int8] [--json FILE]

The weights are random, since only time and memory are measured. Each case has a process of its own for each engine, so
its peak is the memory of that case. What should grow with rows x tokens is shown for one row or token: time of the
encoder by source token, and of a step by row.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.command import run_command
from lora_ft.bench.engines import parse
from lora_ft.bench.models import BenchModel
from lora_ft.bench.runner import TimedEngine
from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import write_json
from lora_ft.core.hardware import allowed_cpus
from lora_ft.core.progress import Silent
from lora_ft.doctor import environment
from lora_ft.models.bases import find_base
from lora_ft.models.checkpoints import save_checkpoint
from lora_ft.reports.markdown import table

# d_model, d_ff, layers and heads of google/flan-t5-*
_SHAPES = {"small": (512, 1024, 8, 6), "base": (768, 2048, 12, 12), "large": (1024, 2816, 24, 16)}
_CASES = ("small:1x128", "small:8x128", "small:32x512", "small:128x512", "small:1x2048", "small:8x2048", "base:8x512")
_ENGINES = ("onnx/fp32", "onnx/int8", "torch/fp32", "openvino-requests/fp32", "openvino-requests/int8")
_STEPS = 16
_ROUNDS = 3


def checkpoint(shape: str, folder: Path) -> Path:
    """Write a checkpoint with random weights, unless it exists, and return its folder."""
    width, inner, layers, heads = _SHAPES[shape]
    if not folder.is_dir():
        torch.manual_seed(0)
        config = T5Config(
            vocab_size=32128,
            d_model=width,
            d_kv=64,
            d_ff=inner,
            num_layers=layers,
            num_heads=heads,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        )
        model = T5ForConditionalGeneration(config).eval()
        # a model with a tied head would repeat its input
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        save_checkpoint(model, find_base("offline").folder, folder)
    return folder


def measure(case: str, engine: str, out: Path) -> dict[str, Any]:
    """Return the time of the encoder and of a step, in seconds, and the peak memory in megabytes, of one engine."""
    shape, _, size = case.partition(":")
    rows, length = map(int, size.split("x"))
    model = BenchModel(shape, out / shape, checkpoint(shape, out / shape / "checkpoint"))
    ids = np.random.default_rng(0).integers(3, 32000, (rows, length)).tolist()
    timed = TimedEngine(engine, model, parse(engine), allowed_cpus(), "cpu")
    figures: dict[str, Any] = {"case": case, "engine": engine}
    with contextlib.ExitStack() as running:
        try:
            timed.start(running, Silent())
            assert timed.process is not None
            loaded = timed.process.memory()["steady"]
            rounds = [[], [], []]  # type: list[list[float]]
            for _ in range(_ROUNDS):
                rounds[0].append(timed.process.ask("encode", ids=ids)["seconds"])
                for times, new in zip(rounds[1:], (1, 1 + _STEPS), strict=True):
                    reply = timed.generate(ids, new=new, least=new, decoding="greedy", room=1 + _STEPS)
                    times.append(reply["seconds"])
            encoder, first, whole = map(statistics.median, rounds)
            figures |= {"encoder": encoder, "step": (whole - first) / _STEPS, "loaded": loaded}
            figures |= {"peak": timed.process.memory()["peak"]}
        except LoraFtError as error:
            figures["error"] = str(error)
    return figures


def main(
    case: Annotated[list[str] | None, typer.Option(help="SHAPE:ROWSxTOKENS, repeatable.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Engine, repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for models. Default: a temporary folder.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
) -> None:
    """Measure every case with every engine, and print a table."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        for one in case or _CASES:
            for name in engine or _ENGINES:
                figures.append(measure(one, name, out or Path(scratch)))
    if json_file is not None:
        write_json(json_file, {"environment": environment(), "steps": _STEPS, "rounds": _ROUNDS, "figures": figures})
    print(tables(figures))


def tables(figures: list[dict[str, Any]]) -> str:
    """Return the table of all cases, also used by the guides."""
    lines = []
    for row in figures:
        if "error" in row:
            lines.append((row["case"], row["engine"], row["error"], "", "", "", ""))
            continue
        rows, length = map(int, row["case"].partition(":")[2].split("x"))
        lines.append(
            (
                row["case"],
                row["engine"],
                f"{1000 * row['encoder']:,.0f}",
                f"{1e6 * row['encoder'] / rows / length:,.0f}",
                f"{1000 * row['step']:,.1f}",
                f"{1000 * row['step'] / rows:,.2f}",
                f"{row['peak'] - row['loaded']:,.0f}",
            )
        )
    columns = ["case", "engine", "encoder, ms", "us a token", "step, ms", "ms a row", "memory of the case, MB"]
    return table(columns, lines)


if __name__ == "__main__":
    run_command(main)

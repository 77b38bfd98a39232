"""Export a model beyond 2 GB in every layout and compare it with PyTorch: a random T5 as wide as FLAN-T5-large.

    python -m benchmarks.studies.large [--out FOLDER] [--json FILE]

A protobuf file is limited to 2 GiB, so each layout must store weights in files next to its graphs. The study needs
about 10 GB of disk space and 10 GB of memory.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.command import run_command
from lora_ft.core.files import folder_size, write_json
from lora_ft.doctor import environment
from lora_ft.export_onnx import export_onnx
from lora_ft.models.bases import find_base
from lora_ft.models.checkpoints import save_checkpoint
from lora_ft.runs.run import TASK
from lora_ft.tasks.files import save_task
from lora_ft.tasks.schema import Task

# config.json of google/flan-t5-large, with 17 instead of 24 layers: 2.3 GB in fp32
_SHAPE: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 1024,
    "d_kv": 64,
    "d_ff": 2816,
    "num_layers": 17,
    "num_heads": 16,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}
_NEW = 8  # tokens of an answer, since random weights rarely generate </s>
_EXPORTS = (("bundle", "fp32"), ("bundle", "int8-w4"), ("optimum", "fp32"), ("single", "fp32"))


def measure(out: Path) -> list[dict[str, Any]]:
    """Export below `out`; return time, size and parity with PyTorch of each layout."""
    torch.manual_seed(0)
    checkpoint = out / "checkpoint"
    model = T5ForConditionalGeneration(T5Config(**_SHAPE)).eval()
    # A model with a tied head would repeat its input.
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    save_checkpoint(model, find_base("offline").folder, checkpoint)
    task = {"name": "large", "prompt": "{text}", "data": {"test": "none"}, "generate": {"max_new_tokens": _NEW}}
    save_task(Task.model_validate(task), checkpoint / TASK)
    figures = []
    for layout, precision in _EXPORTS:
        began = time.perf_counter()
        exported = export_onnx(
            str(checkpoint),
            out / f"{layout}-{precision}",
            layout=layout,
            precision=precision,
            verify_rows=1,
            force=True,
        )
        figures.append(
            {
                "layout": layout,
                "precision": precision,
                "seconds": round(time.perf_counter() - began, 1),
                "megabytes": round(folder_size(exported.out) / 1e6, 1),
                "parity": exported.parity.as_dict(),
            }
        )
    return figures


def main(
    out: Annotated[Path | None, typer.Option(help="Folder for the exports. Default: a temporary folder.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
) -> None:
    """Export a large model and print the figures of each layout."""
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        figures = measure(out or Path(scratch))
    if json_file is not None:
        write_json(json_file, {"environment": environment(), "exports": figures})
    for layout in figures:
        parity = layout["parity"]
        print(
            f"{layout['layout']} {layout['precision']}: {layout['megabytes']:,.0f} MB in {layout['seconds']:.0f} s; "
            f"same text as PyTorch for {parity['identical_rows']} of {parity['rows']} rows"
        )


if __name__ == "__main__":
    run_command(main)

"""Measure the time of an export, stage by stage, in each precision.

    python -m benchmarks.studies.exporting RUN [--precision int8 --precision int8-w4] [--json FILE]

Each export runs in a new process, like the command. The time before its first stage is spent on imports. Comparison
with PyTorch and scoring count as verification, all other stages as export.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import run_command
from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import write_json
from lora_ft.doctor import environment
from lora_ft.reports.markdown import table

Stages = dict[str, float]  # seconds by the stage's name, in their order
IMPORTS = "imports"
_VERIFYING = ("comparing", "scoring", "timing")  # first words of the stages that verify or choose
_BEGIN = "stage "
# Prints each stage as it begins.
_EXPORT = """
import sys
from pathlib import Path
from lora_ft.export_onnx import export_onnx
from lora_ft.core.progress import Silent
class Told(Silent):
    def stage(self, name, total=0, done=0):
        print("stage", name, flush=True)
name, out, precision = sys.argv[1:]
export_onnx(name, Path(out), precision=precision, force=True, progress=Told())
"""


def measure(name: str, precision: str, clock: Callable[[], float] = time.perf_counter) -> Stages:
    """Return the stages of one export.

    Args:
        name: Run, checkpoint or base.
        precision: Precision, as in `lora-ft export`.
        clock: Returns the time, in seconds.

    Raises:
        LoraFtError: The export failed.
    """
    found: Stages = {}
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        stage, began = IMPORTS, clock()
        command = [sys.executable, "-c", _EXPORT, name, str(Path(scratch, "bundle")), precision]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(_BEGIN):
                    now = clock()
                    found[stage] = found.get(stage, 0.0) + now - began
                    stage, began = line.removeprefix(_BEGIN).strip(), now
        found[stage] = found.get(stage, 0.0) + clock() - began
    if process.returncode:
        raise LoraFtError(f"the export of {name} in {precision} failed", "its message is above")
    return found


def is_verification(stage: str) -> bool:
    """Return True if a stage compares, scores or times the exported bundle."""
    return stage.startswith(_VERIFYING)


def text(found: dict[str, Stages]) -> str:
    """Return the stages by precision, in Markdown."""
    stages = sorted(dict.fromkeys(stage for one in found.values() for stage in one), key=is_verification)
    lines = [[stage, *(f"{one[stage]:.1f}" if stage in one else "" for one in found.values())] for stage in stages]
    for name, verifies in (("export", False), ("verification", True)):
        sums = (sum(one[stage] for stage in one if is_verification(stage) == verifies) for one in found.values())
        lines.append([f"**{name}**", *(f"{seconds:.1f}" for seconds in sums)])
    return table(["seconds", *found], lines)


def main(
    name: str,
    precision: Annotated[list[str] | None, typer.Option(help="Several, one after another.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Exports of each, of which medians are shown.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure there.")] = None,
) -> None:
    """Export a run in several precisions and print the time of each stage."""
    every: dict[str, list[Stages]] = {one: [] for one in precision or ["fp32", "int8", "int8-w8", "int8-w4"]}
    for _ in range(rounds):
        for one, measured in every.items():
            measured.append(measure(name, one))
    found = {
        one: {stage: statistics.median(turn[stage] for turn in turns) for stage in turns[0]}
        for one, turns in every.items()
    }
    if json_file is not None:
        write_json(json_file, {"environment": environment(), "rounds": rounds, "seconds": found})
    print(text(found))


if __name__ == "__main__":
    run_command(main)

"""Measure the time of each stage of an export, in several precisions.

    python -m benchmarks.studies.exporting RUN [--precision int8 --precision int8-w4] [--json FILE]

Each export runs in a new process, as with the command. The time before its first stage is the time of imports. Stages
that compare with PyTorch, score or time the bundle count as verification, all other stages as export.
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

Stages = dict[str, float]  # seconds by name of the stage, in the order of the stages
IMPORTS = "imports"
_VERIFYING = ("comparing", "scoring", "timing")  # first words of the stages that verify or choose
_BEGIN = "stage "
# Script that exports a model and prints the name of each stage when it begins.
_EXPORT = """
import sys
from pathlib import Path
from lora_ft.export_onnx import export_onnx
from lora_ft.core.progress import Silent
class Printed(Silent):
    def stage(self, name, total=0, completed=0):
        print("stage", name, flush=True)
name, out, precision = sys.argv[1:]
export_onnx(name, Path(out), precision=precision, force=True, progress=Printed())
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
    stages: Stages = {}
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        stage, began = IMPORTS, clock()
        command = [sys.executable, "-c", _EXPORT, name, str(Path(scratch, "bundle")), precision]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(_BEGIN):
                    now = clock()
                    stages[stage] = stages.get(stage, 0.0) + now - began
                    stage, began = line.removeprefix(_BEGIN).strip(), now
        stages[stage] = stages.get(stage, 0.0) + clock() - began
    if process.returncode:
        raise LoraFtError(f"the export of {name} in {precision} failed", "see its error message above")
    return stages


def is_verification(stage: str) -> bool:
    """Return True if a stage compares, scores or times the exported bundle."""
    return stage.startswith(_VERIFYING)


def text(by_precision: dict[str, Stages]) -> str:
    """Return the stages by precision, in Markdown."""
    columns = list(by_precision.values())
    stages = sorted(dict.fromkeys(stage for seconds in columns for stage in seconds), key=is_verification)
    lines = [[stage, *(f"{seconds[stage]:.1f}" if stage in seconds else "" for seconds in columns)] for stage in stages]
    for name, verifies in (("export", False), ("verification", True)):
        totals = (sum(seconds[stage] for stage in seconds if is_verification(stage) == verifies) for seconds in columns)
        lines.append([f"**{name}**", *(f"{total:.1f}" for total in totals)])
    return table(["seconds", *by_precision], lines)


def main(
    name: str,
    precision: Annotated[list[str] | None, typer.Option(help="Precision to export; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Exports per precision; medians are shown.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
) -> None:
    """Export a run in several precisions and print the time of each stage."""
    stages_by_precision: dict[str, list[Stages]] = {
        kind: [] for kind in precision or ["fp32", "int8", "int8-w8", "int8-w4"]
    }
    for _ in range(rounds):
        for kind, exports in stages_by_precision.items():
            exports.append(measure(name, kind))
    medians = {
        kind: {stage: statistics.median(turn[stage] for turn in turns) for stage in turns[0]}
        for kind, turns in stages_by_precision.items()
    }
    if json_file is not None:
        write_json(json_file, {"environment": environment(), "rounds": rounds, "seconds": medians})
    print(text(medians))


if __name__ == "__main__":
    run_command(main)

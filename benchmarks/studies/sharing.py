"""Measure the memory that several processes share when they serve one bundle.

    python -m benchmarks.studies.sharing BUNDLE... [--processes 4] [--json FILE]

The bundle's file is mapped into memory and thus shared, but ONNX Runtime repacks weights in each process. The cost of
one more process is its private memory, which Linux reports in /proc/PID/smaps_rollup.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import run_command
from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import write_json
from lora_ft.doctor import environment
from lora_ft.export.runtime.manifest import read_manifest

# Script that loads a bundle, answers once so that every graph is open, prints a line, and waits to be killed.
_SERVE = """
import sys
import numpy as np
from lora_ft.export.runtime import Generator

model = Generator.load(sys.argv[1])
model.generate_ids(np.full((1, 32), 5), np.ones((1, 32), np.int64), max_new_tokens=4, min_new_tokens=4)
print(flush=True)
sys.stdin.read()
"""


def measure(bundle: Path, processes: int) -> dict[str, Any]:
    """Return the mean memory of `processes` processes that serve a bundle; see `memory`.

    Raises:
        LoraFtError: A process died, or this system does not report memory by process.
    """
    precision = read_manifest(bundle)["precision"]
    serving = [
        subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(bundle)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(processes)
    ]
    try:
        for process in serving:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise LoraFtError(f"a process that serves {bundle} died", "run `lora-ft generate` on it alone")
        memories = [memory(process.pid) for process in serving]
    finally:
        for process in serving:
            process.kill()
            process.communicate()
    mean = {key: round(sum(usage[key] for usage in memories) / processes, 1) for key in memories[0]}
    return {"bundle": bundle.name, "precision": precision, "processes": processes, **mean}


def memory(pid: int) -> dict[str, float]:
    """Return the memory of a process in megabytes: resident, private, and its proportional share of mapped pages."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    except OSError as error:
        raise LoraFtError(f"the memory of process {pid} cannot be read on this system ({error})") from error
    kilobytes = {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines)}
    return {
        "resident": kilobytes["Rss"] / 1e3,
        "private": (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) / 1e3,
        "share": kilobytes["Pss"] / 1e3,
    }


def main(
    bundles: list[Path],
    processes: Annotated[int, typer.Option(min=1, help="Processes that serve the bundle.")] = 4,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
) -> None:
    """Measure shared memory and print it for each bundle."""
    bundle_figures = [measure(bundle, processes) for bundle in bundles]
    if json_file is not None:
        write_json(json_file, {"environment": environment(), "bundles": bundle_figures})
    for figures in bundle_figures:
        print(
            f"{figures['precision']}: {processes} processes, each {figures['resident']:.0f} MB resident, of which "
            f"{figures['private']:.0f} MB private and {figures['resident'] - figures['private']:.0f} MB shared"
        )


if __name__ == "__main__":
    run_command(main)

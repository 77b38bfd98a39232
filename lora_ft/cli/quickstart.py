"""`quickstart`: every verb once, on the example that ships with lora-ft, and one table of results."""

from __future__ import annotations

import statistics
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

from lora_ft.bench.models import BenchModel
from lora_ft.bench.report import BenchReport
from lora_ft.bench.run import PAGE, measure
from lora_ft.bench.suite import Suite
from lora_ft.core.files import folder_size
from lora_ft.core.hub import hub_trouble
from lora_ft.core.shell_command import shell_command
from lora_ft.data.splits import Example, load_splits
from lora_ft.evaluate import Evaluation, evaluate
from lora_ft.export_onnx import Exported, export_onnx
from lora_ft.generate import generate
from lora_ft.merge import merge
from lora_ft.models.bases import OFFLINE
from lora_ft.models.loading import load
from lora_ft.reports.screen import Screen
from lora_ft.reports.terminal import console, show_pairs, table
from lora_ft.tasks.files import load_task
from lora_ft.train import train

RECIPE = "dialogue-summary"
_HUB_BASE = "google/flan-t5-small"


@dataclass(frozen=True)
class Quickstart:
    """Result of every verb on the example.

    Attributes:
        out: Folder of all output.
        scores: Scores of the run and of its base.
        exported: Exported bundle.
        speed: Times of PyTorch and the bundle.
        example: Test row.
        answer: Answer of the bundle to the test row.
        seconds: Total time.
    """

    out: Path
    scores: Evaluation
    exported: Exported
    speed: BenchReport
    example: Example
    answer: str
    seconds: float


def run_quickstart(out: Path, *, base: str | None, overwrite: bool, screen: Screen) -> Quickstart:
    """Train, merge, score, export and time the example, and generate an answer. All output is below `out`."""
    began = time.monotonic()
    task = load_task(RECIPE, [f"base={base or _reachable_base(screen)}"])
    run_folder, checkpoint, bundle = out / "run", out / "checkpoint", out / "bundle"
    run = train(task, run_folder, overwrite=overwrite, progress=screen)
    merge(run, checkpoint, overwrite=overwrite, progress=screen)
    scores = evaluate(str(run_folder), baseline=True, progress=screen)
    exported = export_onnx(str(checkpoint), bundle, overwrite=overwrite, progress=screen)
    suite = Suite(name="quickstart", engines=("torch/fp32", "onnx/fp32"), batch=(1,), rounds=5)
    speed = measure(
        [BenchModel("quickstart", out, checkpoint, bundle)],
        suite,
        out / "bench",
        task=task,
        overwrite=overwrite,
        progress=screen,
    )
    example = load_splits(task, ["test"]).test[0]
    answer = generate(load(str(bundle)), [example.row], {})[0]
    return Quickstart(out, scores, exported, speed, example, answer, time.monotonic() - began)


def _reachable_base(screen: Screen) -> str:
    """Return the base on the Hub, or the offline base, with a note, if the Hub cannot be reached."""
    trouble = hub_trouble()
    if not trouble:
        return _HUB_BASE
    screen.note(f"the model hub cannot be used ({trouble}); using the base 'offline'")
    return OFFLINE


def show_quickstart(result: Quickstart) -> None:
    """Print scores before and after training, the files that were written, and commands to try next."""
    out, scores, exported, example = result.out, result.scores, result.exported, result.example
    assert scores.baseline is not None and scores.difference is not None  # requested above
    speed, answer, seconds = result.speed, result.answer, result.seconds
    torch, onnx = speed.cases[0].timings.values()
    screen = console()
    rouge = table("ROUGE, 0-100 [95 %]", "before", "after", "difference")
    for kind, after in scores.scores.items():
        rouge.add_row(kind, str(scores.baseline.scores[kind]), str(after), str(scores.difference[kind]))
    facts = {
        "adapter": f"{folder_size(out / 'run' / 'adapter') / 1e6:.1f} MB   {out / 'run'}",
        "merged": f"{folder_size(out / 'checkpoint') / 1e6:.1f} MB   {out / 'checkpoint'}",
        "ONNX": f"{exported.bytes / 1e6:.1f} MB   {out / 'bundle'}",
        "verified": str(exported.parity),
        "64 tokens": f"torch {1000 * statistics.median(torch.total):.0f} ms, ONNX "
        f"{1000 * statistics.median(onnx.total):.0f} ms: {onnx.ratio.value:.1f} times as fast (batch 1, fp32)",
        "speed report": str(out / "bench" / PAGE),
        "asked": textwrap.shorten(example.row["dialogue"], 200, placeholder=" …"),
        "answered": answer,
        "took": f"{seconds:.0f} s",
    }
    screen.print()
    screen.print(rouge)
    screen.print(f"on {scores.rows} test rows that were not used in training", style="dim")
    screen.print()
    show_pairs(facts)
    screen.print("\nNext:")
    for command in (
        shell_command("generate", out / "bundle", "Ana: Lunch at one? Ben: Make it two, I have a call."),
        shell_command("evaluate", out / "run", "--baseline"),
        shell_command("init", "my-task.yaml", "--data", "my-rows.csv"),
    ):
        screen.print(f"  {command}", soft_wrap=True)

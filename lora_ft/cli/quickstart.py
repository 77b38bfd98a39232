"""The verb `quickstart`: every job once, on the example that ships with lora-ft, ending in one table."""

from __future__ import annotations

import statistics
import textwrap
import time
from pathlib import Path

from lora_ft.bench.models import BenchModel
from lora_ft.bench.report import BenchReport
from lora_ft.bench.run import PAGE, measure
from lora_ft.bench.suite import Suite
from lora_ft.core.files import folder_size
from lora_ft.core.hub import hub_trouble
from lora_ft.data.splits import Example, load_splits
from lora_ft.evaluate import Evaluation, evaluate
from lora_ft.export_onnx import Exported, export
from lora_ft.generate import generate
from lora_ft.merge import merge
from lora_ft.models.bases import OFFLINE
from lora_ft.models.loading import open_model
from lora_ft.reports.screen import Screen
from lora_ft.reports.terminal import console, show_pairs, table
from lora_ft.tasks.files import load_task
from lora_ft.train import train

RECIPE = "dialogue-summary"
_HUB_BASE = "google/flan-t5-small"


def quickstart(out: Path, *, base: str | None, overwrite: bool) -> None:
    """Run the main job end to end below `out` and print what came of it."""
    began = time.monotonic()
    with Screen() as screen:
        if base is None:
            trouble = hub_trouble()
            base = OFFLINE if trouble else _HUB_BASE
            if trouble:
                screen.note(f"The model hub cannot be used here ({trouble}): taking the base 'offline'.")
        task = load_task(RECIPE, [f"base={base}"])
        run_folder, checkpoint, bundle = out / "run", out / "checkpoint", out / "bundle"
        run = train(task, run_folder, overwrite=overwrite, progress=screen)
        merge(run, checkpoint, overwrite=overwrite, progress=screen)
        scores = evaluate(str(run_folder), baseline=True, progress=screen)
        exported = export(str(checkpoint), bundle, overwrite=overwrite, progress=screen)
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
        answer = generate(open_model(str(bundle)), [example.row], {})[0]
    _show(out, scores, exported, speed, example, answer, time.monotonic() - began)


def _show(
    out: Path, scores: Evaluation, exported: Exported, speed: BenchReport, example: Example, answer: str, seconds: float
) -> None:
    assert scores.baseline is not None and scores.difference is not None  # asked for above
    torch, onnx = speed.cases[0].timings.values()
    screen = console()
    rouge = table("ROUGE, 0-100 [95 %]", "before", "after", "difference")
    for kind, after in scores.scores.scores.items():
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
    screen.print(f"on {scores.rows} test rows that training never saw", style="dim")
    screen.print()
    show_pairs(facts)
    screen.print("\nNext:")
    for command in (
        f"lora-ft generate {out / 'bundle'} 'Ana: Lunch at one? Ben: Make it two, I have a call.'",
        f"lora-ft evaluate {out / 'run'} --baseline",
        "lora-ft validate my-task.yaml    # start from: lora-ft recipes",
    ):
        screen.print(f"  {command}", soft_wrap=True)

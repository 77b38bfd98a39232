"""Text form of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lora_ft.runs.run import METRICS, Run


def test_run_prints_its_task_steps_score_and_folder_on_one_line(tiny_run: Run) -> None:
    metrics = tiny_run.metrics
    score = f"{tiny_run.task.train.metric_for_best_model} {metrics['best_metric']:.4g} at step {metrics['best_step']}"
    assert str(tiny_run) == f"tiny: finished after {metrics['steps']} steps, {score}, in {tiny_run.folder}"
    assert repr(tiny_run) == f"Run({str(tiny_run.folder)!r})"


def test_run_without_validation_prints_no_score(tiny_run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    metrics = tiny_run.metrics | {"best_metric": None, "best_step": None}
    (folder / METRICS).write_text(json.dumps(metrics), encoding="utf-8")
    assert ", no validation score, in " in str(Run(folder))

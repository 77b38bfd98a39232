"""Train on rows built in Python, score, export to ONNX, and answer a new row."""

from __future__ import annotations

import argparse
from pathlib import Path

import lora_ft

ROOMS = ("Room", "Hall", "Studio")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")


def rows() -> list[dict[str, str]]:
    """Return announcements and their summaries."""
    return [
        {"text": f"{room} {number} is free on {day} from {number} o'clock.", "summary": f"{room} {number}: {day}."}
        for room in ROOMS
        for day in DAYS
        for number in range(1, 9)
    ]


def main(base: str, out: Path) -> None:
    """Train, score, export and answer; runs and bundles go below `out`."""
    all_rows = rows()
    data = {"train": all_rows[16:], "validation": all_rows[:8], "test": all_rows[8:16], "target": "summary"}
    task = lora_ft.Task(
        name="summaries",
        base=base,
        prompt="Summarize: {text}",
        data=data,
        lengths={"source": 64, "target": 32},
        train={"num_train_epochs": 2, "learning_rate": 2e-3, "metric_for_best_model": "loss"},
    )
    run = lora_ft.train(task, out / "runs" / task.name)
    evaluation = lora_ft.evaluate(run, baseline=True)
    print("ROUGE-1:", evaluation.scores["rouge1"])
    lora_ft.export_onnx(run, out / "bundles" / task.name)
    model = lora_ft.load(out / "bundles" / task.name)
    print(model.generate([{"text": "Hall 5 is free on Friday from noon."}]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="offline", help="Hub name, path of a checkpoint, or: offline")
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder for runs and bundles")
    arguments = parser.parse_args()
    main(arguments.base, arguments.out)

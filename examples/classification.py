"""Train a classifier on a CSV file: answers are one of the labels, scored by accuracy."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import lora_ft

MESSAGES = {
    "billing": ("I was charged twice for order {n}.", "The invoice {n} has a wrong address.", "Refund order {n}."),
    "delivery": ("Where is parcel {n}?", "Order {n} arrived broken.", "Please deliver order {n} on Monday."),
    "repair": ("The brake of bike {n} squeaks.", "Bike {n} has a flat tire.", "The chain of bike {n} is loose."),
}


def write_rows(path: Path, copies: int = 8) -> None:
    """Write a CSV file with the columns `message` and `team`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["message", "team"])
        for number in range(copies):
            for team, messages in MESSAGES.items():
                writer.writerows([message.format(n=number), team] for message in messages)


def main(base: str, out: Path) -> None:
    """Train, score, export and answer; rows, runs and bundles go below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "messages.csv")
    task = lora_ft.Task(
        name="teams",
        base=base,
        prompt="Which team answers this message? {message} Team:",
        labels="auto",
        data={
            "train": str(out.resolve() / "messages.csv"),
            "target": "team",
            "split": {"validation": 0.1, "test": 0.2},
        },
        lengths={"source": 96, "target": 16},
        train={"num_train_epochs": 3, "learning_rate": 2e-3, "metric_for_best_model": "accuracy"},
        evaluate={"metrics": ["exact_match"], "metric": "accuracy"},
    )
    run = lora_ft.train(task, out / "runs" / task.name)
    print("accuracy:", lora_ft.evaluate(run).scores["accuracy"])
    lora_ft.export_onnx(run, out / "bundles" / task.name)
    model = lora_ft.load(out / "bundles" / task.name)
    answers = model.generate([{"message": "My bike has no light."}, {"message": "Pay invoice 7 later?"}])
    assert set(answers) <= set(MESSAGES), "an answer is always one of the labels"
    print(answers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="offline", help="Hub name, path of a checkpoint, or: offline")
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder for rows, runs and bundles")
    arguments = parser.parse_args()
    main(arguments.base, arguments.out)

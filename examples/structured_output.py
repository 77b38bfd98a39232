"""Train on rows whose targets are JSON objects, and count answers that equal the expected object."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import lora_ft

ITEMS = ("lamp", "lock", "pump", "bell", "helmet", "basket")


def rows() -> list[dict[str, Any]]:
    """Return orders in words, and as objects."""
    return [
        {"message": f"Please send {number} of the {item} to shelf {shelf}.", "order": {"item": item, "count": number}}
        for item in ITEMS
        for number in range(1, 9)
        for shelf in (1, 2)
    ]


def main(base: str, out: Path) -> None:
    """Write rows as JSON Lines, train, score and answer; everything goes below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    path = out.resolve() / "orders.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    task = lora_ft.Task(
        name="orders",
        base=base,
        prompt="Write the order as JSON: {message}",
        codec="json",
        data={"train": str(path), "target": "order", "split": {"validation": 0.1, "test": 0.2}},
        lengths={"source": 96, "target": 64},
        train={"num_train_epochs": 2, "learning_rate": 2e-3, "metric_for_best_model": "loss"},
        evaluate={"metrics": ["exact_match"], "metric": "exact_match"},
    )
    run = lora_ft.train(task, out / "runs" / task.name)
    print("equal objects:", lora_ft.evaluate(run).scores["same_value"])
    print(lora_ft.load(run).generate([{"message": "Please send 3 of the bell to shelf 2."}]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="offline", help="Hub name, path of a checkpoint, or: offline")
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder for rows and runs")
    arguments = parser.parse_args()
    main(arguments.base, arguments.out)

"""Every way of decoding answers the same rows of a run, and is compared with greedy search."""

from __future__ import annotations

from pathlib import Path

from benchmarks.studies.decoding import WAYS, measure, tables
from lora_ft.core.progress import Silent
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from tests.conftest import write_task


def test_ways_are_compared_with_greedy_search(tiny_base: Path, tmp_path: Path) -> None:
    run = train(load_task(write_task(tmp_path, tiny_base, train={"max_steps": 2})), tmp_path / "run")
    figures = measure(run, tmp_path / "out", Silent(), limit=3)
    assert list(figures["ways"]) == list(WAYS) and figures["rows"] == 3
    greedy, *others = figures["ways"].values()
    assert greedy["difference"] is None and all(other["difference"] for other in others)
    shown = tables({"tasks": {"tiny": figures}})
    assert all(f"| {way} | " in shown for way in WAYS)

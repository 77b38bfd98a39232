"""The model card: metadata that the hub can read, and what a user of the adapter must know."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_ft.card import model_card
from lora_ft.offline import NOTICE
from lora_ft.runs import Run
from lora_ft.taskfile import load_task

MakeTask = Callable[..., Path]


def metrics(**changes: Any) -> dict[str, Any]:
    return {
        "base": {"name": "b", "notice": ""},
        "rows": {"train": 1234, "validation": 56},
        "steps": 12,
        "global_batch": 16,
        "trainable_parameters": 688_128,
        "precision": "bf16",
        "compiled": False,
        "best_metric": 41.256,
        "best_step": 6,
        "speed": {"seconds": 61.4, "samples_per_second": 8.04},
        "versions": {"torch": "2.9", "peft": "0.18"},
    } | changes


def metadata(card: str) -> dict[str, Any]:
    opening, head, _ = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(head)


@pytest.mark.parametrize("base", ["google/flan-t5-small", "offline", "a folder"])
def test_the_metadata_is_yaml_that_names_a_base_on_the_hub_only(make_task: MakeTask, tmp_path: Path, base: str) -> None:
    """The hub refuses a card whose base_model is no name on the hub."""
    name = str(tmp_path) if base == "a folder" else base
    head = metadata(model_card(load_task(make_task()).model_copy(update={"base": name}), metrics()))
    assert head.get("base_model") == ("google/flan-t5-small" if base == "google/flan-t5-small" else None)
    assert head["library_name"] == "peft" and "lora" in head["tags"]


def test_the_example_of_the_card_runs(tiny_run: Run) -> None:
    code = (tiny_run.folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    subprocess.run([sys.executable, "-c", code], cwd=tiny_run.folder, check=True, capture_output=True)


def test_the_card_says_how_the_adapter_was_trained(make_task: MakeTask) -> None:
    card = model_card(load_task(make_task()), metrics())
    for words in (
        "# tiny\n", "say: {text}", "r 8, alpha 16", "688,128", "1,234", "12 of 16 rows, learning rate 0.01", "| bf16 |",
        "61 s, 8.0 samples/s", "torch 2.9, peft 0.18",
    ):  # fmt: skip
        assert words in card, words


def test_the_score_is_the_best_one_with_its_step(make_task: MakeTask) -> None:
    assert "Best rouge1 on 56 validation rows: 41.26 (step 6)." in model_card(load_task(make_task()), metrics())


def test_without_validation_no_score_is_claimed(make_task: MakeTask) -> None:
    card = model_card(
        load_task(make_task()), metrics(best_metric=None, best_step=None, rows={"train": 9, "validation": 0})
    )
    assert "Trained without validation rows." in card and "Best" not in card


def test_the_offline_base_is_not_passed_off_as_the_original(make_task: MakeTask) -> None:
    task = load_task(make_task(), ["base=offline"])
    assert f"\n> {NOTICE}\n" in model_card(task, metrics(base={"name": "offline", "notice": NOTICE}))
    assert "> " not in model_card(task, metrics())


def test_a_compiled_run_and_one_without_a_speed_have_cards_too(make_task: MakeTask) -> None:
    speed = {"seconds": 0.2, "samples_per_second": None}
    card = model_card(load_task(make_task()), metrics(compiled=True, speed=speed))
    assert "bf16, compiled" in card and "0.0 samples/s" in card

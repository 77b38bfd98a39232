"""The comparison of training settings: every seed has rows of its own, and nothing is trained twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import defaults
from benchmarks.studies.defaults import RECIPE, VARIANTS, Design, measure, tables
from lora_ft.core.errors import UsageError
from lora_ft.core.progress import Silent
from lora_ft.runs.run import Run
from lora_ft.tasks.files import load_task
from lora_ft.tasks.search import with_settings
from tests.conftest import write_task

SMALL: dict[str, dict[str, Any]] = {
    RECIPE: {},
    "slow": {"train.learning_rate": 1e-5},
    "rank 2": {"lora.r": 2},
}


@pytest.fixture(scope="module")
def design(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Design:
    root = tmp_path_factory.mktemp("defaults")
    task = write_task(
        root, tiny_base, lora={"preset": "default"}, train={"max_steps": 4, "per_device_train_batch_size": 8}
    )
    shutil.move(task, root / "jfleg.yaml")
    shutil.move(task.parent, root / "jfleg_grammar")
    return Design(root, rows=12, seeds=2, overrides=["train.learning_rate=0.02"], variants=SMALL, files=root)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_valid_task(name: str, design: Design, tmp_path: Path) -> None:
    recipe = design.recipe("jfleg", 1, tmp_path)
    assert (with_settings(recipe, VARIANTS[name]) == recipe) == (name == RECIPE)


def test_each_seed_draws_rows_of_its_own(design: Design, tmp_path: Path) -> None:
    drawn = [design.recipe("jfleg", seed, tmp_path / str(seed)) for seed in (1, 2, 1)]
    texts = [Path(str(task.data.train)).read_text() for task in drawn]
    assert texts[0] == texts[2] != texts[1] and len(set(texts[0].splitlines())) == 12
    with pytest.raises(UsageError, match="has 24 training rows, fewer than 25"):
        Design(design.data, 25, 1, [], files=design.files).recipe("jfleg", 1, tmp_path)


def test_variants_are_compared_with_the_recipe(design: Design, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "defaults.json"
    figures = measure(design, ["jfleg"], tmp_path / "runs", results, Silent())
    task = figures["tasks"]["jfleg"]
    assert {name: len(scores) for name, scores in task["scores"].items()} == dict.fromkeys(SMALL, 2)
    for seed in (1, 2):
        folder = tmp_path / "runs" / f"jfleg-{seed}"
        assert Run(folder / "variant-00").metrics["best_metric"] == task["scores"][RECIPE][seed - 1]
        assert load_task(folder / "variant-01" / "task.yaml").train.seed == seed
    shown = tables(figures)
    assert "| slow | " in shown and f"| {RECIPE} | +0.0 |" in shown and "jfleg, rouge1" in shown
    assert json.loads(results.read_text()) == figures
    monkeypatch.setattr(defaults, "train_many", None)  # training again would fail
    assert (
        measure(design, ["jfleg"], tmp_path / "runs", results, Silent())["tasks"]["jfleg"]["scores"] == task["scores"]
    )


def test_results_of_another_recipe_are_refused(design: Design, tmp_path: Path) -> None:
    results = tmp_path / "defaults.json"
    results.write_text(json.dumps({"version": 1, "rows": 13, "overrides": [], "variants": SMALL, "tasks": {}}))
    with pytest.raises(UsageError, match="has figures of another recipe"):
        measure(design, ["jfleg"], tmp_path / "runs", results, Silent())

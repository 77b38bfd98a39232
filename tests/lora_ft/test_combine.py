"""Adapters of several tasks made one: sums are exact, every task is scored, and the result is a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.errors import UsageError
from lora_ft.adapters import load_adapter
from lora_ft.bases import load_model
from lora_ft.cli import run as lora_ft
from lora_ft.combine import combine
from lora_ft.merge import merge_in_memory
from lora_ft.runs import Run
from lora_ft.taskfile import load_task
from lora_ft.train import train
from tests.conftest import write_task

Layer = "encoder.block.0.layer.0.SelfAttention.q"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> list[Run]:
    """Two of unlike ranks and layers."""
    root = tmp_path_factory.mktemp("combine")
    loras = [{"r": 2, "lora_alpha": 4, "target_modules": "q,v"}, {"r": 3, "lora_alpha": 3, "target_modules": "q,wo"}]
    settings = {"metric_for_best_model": "loss", "max_steps": 6}
    found = []
    for at, lora in enumerate(loras):
        task = write_task(root, tiny_base, name=f"t{at}", lora=lora, train={**settings, "seed": at})
        found.append(train(load_task(task), root / f"run{at}"))
    return found


def moved(run: Run, tiny_base: Path) -> torch.Tensor:
    """What an adapter adds to one layer."""
    adapted = load_adapter(load_model(tiny_base), run.adapter)
    return adapted.base_model.model.get_submodule(Layer).get_delta_weight("default")


def test_a_weighted_sum_is_the_sum(runs: list[Run], tmp_path: Path, tiny_base: Path) -> None:
    done = combine(runs, tmp_path / "sum", weights=[0.25, 2.0], limit=2)
    expected = 0.25 * moved(runs[0], tiny_base) + 2.0 * moved(runs[1], tiny_base)
    torch.testing.assert_close(moved(done.run, tiny_base), expected)
    assert done.rank == 5 and done.run.task.name == "sum"
    assert merge_in_memory(done.run).rows > 0
    assert done.run.metrics["combined"]["weights"] == [0.25, 2.0]


@pytest.mark.parametrize("way", ["ties", "dare"])
def test_ties_and_dare_are_reproducible(runs: list[Run], tmp_path: Path, tiny_base: Path, way: str) -> None:
    first, again = (combine(runs, tmp_path / name, way=way, density=0.5, limit=1).run for name in ("a", "b"))
    assert torch.equal(moved(first, tiny_base), moved(again, tiny_base))
    whole = combine(runs, tmp_path / "whole", weights=[0.5, 0.5], limit=1).run
    assert not torch.allclose(moved(first, tiny_base), moved(whole, tiny_base))


def test_every_task_is_scored_beside_its_own_adapter(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both"
    folders = [str(run.folder) for run in runs]
    assert lora_ft(["adapters", "merge", *folders, "--out", str(out), "--way", "ties", "--limit", "3"]) == 0
    printed = capsys.readouterr().out
    assert "t0" in printed and "t1" in printed and "combined" in printed
    assert [score["rows"] for score in Run(out).metrics["combined"]["scores"]] == [3, 3]
    assert lora_ft(["evaluate", str(out), "--limit", "2"]) == 0
    assert "Combined from t0, t1" in (out / "README.md").read_text()


def test_what_cannot_be_combined(runs: list[Run], tmp_path: Path) -> None:
    for given, options, said in (
        (runs[:1], {}, "nothing to combine"),
        (runs, {"way": "soup"}, "unknown way"),
        (runs, {"weights": [1.0]}, "1 weights for 2 runs"),
    ):
        with pytest.raises(UsageError, match=said):
            combine(given, tmp_path / "no", **options)
    other = Run(runs[1].folder)
    other.task = other.task.model_copy(update={"base": "offline"})
    with pytest.raises(UsageError, match="on base offline"):
        combine([runs[0], other], tmp_path / "no")

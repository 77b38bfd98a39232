"""Adapters of several tasks made one: sums are exact, every task is scored, and the result is a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ft.cli import run as lora_ft
from lora_ft.core.errors import UsageError
from lora_ft.core.locks import holds
from lora_ft.merge_adapters import merge_adapters
from lora_ft.models.adapters import load_adapter
from lora_ft.models.bases import load_model
from lora_ft.models.merging import merge_in_memory
from lora_ft.models.peft_adapter import PeftAdapter
from lora_ft.runs.run import Run
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from tests.conftest import write_task
from tests.lora_ft.test_foreign_adapters import configure, make

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


def moved(run: Run | PeftAdapter, tiny_base: Path) -> torch.Tensor:
    """What an adapter adds to one layer."""
    adapted = load_adapter(load_model(tiny_base), run.adapter)
    return adapted.base_model.model.get_submodule(Layer).get_delta_weight("default")


def test_a_weighted_sum_is_the_sum(runs: list[Run], tmp_path: Path, tiny_base: Path) -> None:
    done = merge_adapters(runs, tmp_path / "sum", weights=[0.25, 2.0], limit=2)
    expected = 0.25 * moved(runs[0], tiny_base) + 2.0 * moved(runs[1], tiny_base)
    torch.testing.assert_close(moved(done.run, tiny_base), expected)
    assert done.rank == 5 and done.run.task.name == "sum"
    assert merge_in_memory(done.run).rows > 0
    assert done.run.metrics["combined"]["weights"] == [0.25, 2.0]


@pytest.mark.parametrize("way", ["ties", "dare"])
def test_ties_and_dare_are_reproducible(runs: list[Run], tmp_path: Path, tiny_base: Path, way: str) -> None:
    first, again = (merge_adapters(runs, tmp_path / name, way=way, density=0.5, limit=1).run for name in ("a", "b"))
    assert torch.equal(moved(first, tiny_base), moved(again, tiny_base))
    whole = merge_adapters(runs, tmp_path / "whole", weights=[0.5, 0.5], limit=1).run
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
            merge_adapters(given, tmp_path / "no", **options)
    other = Run(runs[1].folder)
    other.task = other.task.model_copy(update={"base": "offline"})
    with pytest.raises(UsageError, match="on base offline"):
        merge_adapters([runs[0], other], tmp_path / "no")


# Pairs that peft itself refuses to combine, or combines wrongly: its result keeps the first one's keys.
FOREIGN: dict[str, list[dict[str, Any]]] = {
    "ranks": [{"target_modules": ["q"], "r": 2}, {"target_modules": ["q", "wo"], "r": 5}],
    "pattern and list": [{"target_modules": r".*SelfAttention\.q$"}, {"target_modules": ["q", "v"]}],
    "rank-stabilized first": [{"target_modules": ["q"], "use_rslora": True}, {"target_modules": ["q"]}],
    "some layers first": [
        {"target_modules": ["q"], "layers_to_transform": [0], "layers_pattern": "block"},
        {"target_modules": ["q", "v"], "exclude_modules": ".*decoder.*"},
    ],
    "ranks by layer": [{"target_modules": ["q", "v"], "rank_pattern": {"q": 7}}, {"target_modules": ["q"]}],
}


@pytest.mark.parametrize("pair", FOREIGN.values(), ids=FOREIGN)
def test_adapters_of_peft_are_summed(pair: list[dict[str, Any]], tmp_path: Path, tiny_base: Path) -> None:
    made = [PeftAdapter(make(tiny_base, tmp_path / f"a{at}", **config)) for at, config in enumerate(pair)]
    done = merge_adapters(made, tmp_path / "sum", weights=[0.5, 2.0])
    expected = 0.5 * moved(made[0], tiny_base) + 2.0 * moved(made[1], tiny_base)
    torch.testing.assert_close(moved(done.run, tiny_base), expected)
    assert done.scores == [] and isinstance(done.run, PeftAdapter)
    own = load_adapter(load_model(tiny_base), done.run.adapter).state_dict()
    layers = {name.partition(".lora_")[0] for name in own if ".lora_A" in name}
    both = [load_adapter(load_model(tiny_base), one.adapter).state_dict() for one in made]
    assert layers == {name.partition(".lora_")[0] for one in both for name in one if ".lora_A" in name}


@pytest.mark.parametrize("way", ["ties", "dare"])
def test_adapters_of_peft_are_combined_like_runs(runs: list[Run], tmp_path: Path, tiny_base: Path, way: str) -> None:
    of_runs = merge_adapters(runs, tmp_path / "runs", way=way, limit=1).run
    of_peft = merge_adapters([PeftAdapter(run.adapter) for run in runs], tmp_path / "peft", way=way).run
    assert torch.equal(moved(of_runs, tiny_base), moved(of_peft, tiny_base))


def test_more_ranks_than_a_layer_has_are_cut(tmp_path: Path, tiny_base: Path) -> None:
    made = [PeftAdapter(make(tiny_base, tmp_path / f"a{at}", target_modules=["q"], r=30)) for at in range(2)]
    done = merge_adapters(made, tmp_path / "out", way="ties", density=1.0)
    assert done.rank < 60 and moved(done.run, tiny_base).isfinite().all()


def test_runs_and_adapters_of_peft_go_together(
    runs: list[Run], tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = make(tiny_base, tmp_path / "theirs", target_modules=["q", "v"]), tmp_path / "both"
    command = ["adapters", "merge", str(runs[0].folder), str(adapter), "--out", str(out), "--limit", "2"]
    assert lora_ft(command) == 0
    shown = capsys.readouterr()
    assert "1 of 2 adapters have no task and are not scored; name one with --task" in shown.err and "t0" in shown.out
    task = str(runs[1].folder / "task.yaml")
    assert lora_ft([*command, "--task", task, "--overwrite"]) == 0
    assert "theirs on t1" in capsys.readouterr().out
    assert lora_ft(["evaluate", str(out), "--task", task, "--limit", "2"]) == 0
    assert lora_ft(["merge", str(out), "--out", str(tmp_path / "merged")]) == 0


def test_adapters_of_peft_that_cannot_be_combined(runs: list[Run], tmp_path: Path, tiny_base: Path) -> None:
    adapter = make(tiny_base, tmp_path / "biases", target_modules=["q"], bias="all")
    with pytest.raises(UsageError, match=r"more than LoRA's matrices \(bias\)"):
        merge_adapters([runs[0], PeftAdapter(adapter)], tmp_path / "no")
    configure(adapter, base_model_name_or_path="elsewhere/t5")
    with pytest.raises(UsageError, match="is on base elsewhere/t5") as caught:
        merge_adapters([runs[0], PeftAdapter(adapter)], tmp_path / "no")
    assert "--base" in caught.value.remedy and not (tmp_path / "no").exists()
    plain = make(tiny_base, tmp_path / "plain", target_modules=["q"])
    configure(plain, base_model_name_or_path=None)
    assert merge_adapters([PeftAdapter(plain), runs[0]], tmp_path / "yes", base=str(tiny_base), limit=1).rank == 6


def test_the_place_is_locked_before_anything_is_loaded(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def require_lock(*_: object) -> None:
        assert holds(tmp_path / "out")
        raise UsageError("stop here", "")

    monkeypatch.setattr(sys.modules["lora_ft.merge_adapters"], "_load", require_lock)
    with pytest.raises(UsageError, match="stop here"):
        merge_adapters(runs, tmp_path / "out")

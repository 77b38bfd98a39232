"""Merging adapters of several tasks: sums are exact, every task is scored, and the result is a run."""

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
    """Return two runs with different ranks and layers."""
    root = tmp_path_factory.mktemp("combine")
    loras = [{"r": 2, "lora_alpha": 4, "target_modules": "q,v"}, {"r": 3, "lora_alpha": 3, "target_modules": "q,wo"}]
    settings = {"metric_for_best_model": "loss", "max_steps": 6}
    trained = []
    for at, lora in enumerate(loras):
        task = write_task(root, tiny_base, name=f"t{at}", lora=lora, train={**settings, "seed": at})
        trained.append(train(load_task(task), root / f"run{at}"))
    return trained


def delta(run: Run | PeftAdapter, tiny_base: Path) -> torch.Tensor:
    """Return the matrix that an adapter adds to the weights of one layer."""
    adapted = load_adapter(load_model(tiny_base), run.adapter)
    return adapted.base_model.model.get_submodule(Layer).get_delta_weight("default")


def test_weighted_sum_is_exact(runs: list[Run], tmp_path: Path, tiny_base: Path) -> None:
    result = merge_adapters(runs, tmp_path / "sum", weights=[0.25, 2.0], limit=2)
    expected = 0.25 * delta(runs[0], tiny_base) + 2.0 * delta(runs[1], tiny_base)
    torch.testing.assert_close(delta(result.run, tiny_base), expected)
    assert result.rank == 5 and result.run.task.name == "sum"
    assert merge_in_memory(result.run).rows > 0
    assert result.run.metrics["combined"]["weights"] == [0.25, 2.0]


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_ties_and_dare_are_reproducible(runs: list[Run], tmp_path: Path, tiny_base: Path, method: str) -> None:
    first, again = (
        merge_adapters(runs, tmp_path / name, method=method, density=0.5, limit=1).run for name in ("a", "b")
    )
    assert torch.equal(delta(first, tiny_base), delta(again, tiny_base))
    whole = merge_adapters(runs, tmp_path / "whole", weights=[0.5, 0.5], limit=1).run
    assert not torch.allclose(delta(first, tiny_base), delta(whole, tiny_base))


def test_every_task_is_scored_with_both_adapters(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both"
    folders = [str(run.folder) for run in runs]
    assert lora_ft(["adapters", "merge", *folders, "--out", str(out), "--method", "ties", "--limit", "3"]) == 0
    printed = capsys.readouterr().out
    assert "t0" in printed and "t1" in printed and "combined" in printed
    assert [score["rows"] for score in Run(out).metrics["combined"]["scores"]] == [3, 3]
    assert lora_ft(["evaluate", str(out), "--limit", "2"]) == 0
    assert "Merged from t0, t1" in (out / "README.md").read_text()


def test_invalid_arguments_are_refused(runs: list[Run], tmp_path: Path) -> None:
    for members, options, message in (
        (runs[:1], {}, "too few adapters to merge"),
        (runs, {"method": "soup"}, "merge method soup is not supported"),
        (runs, {"weights": [1.0]}, "got 1 for 2"),
    ):
        with pytest.raises(UsageError, match=message):
            merge_adapters(members, tmp_path / "no", **options)
    offline_run = Run(runs[1].folder)
    offline_run.task = offline_run.task.model_copy(update={"base": "offline"})
    with pytest.raises(UsageError, match="has the base offline"):
        merge_adapters([runs[0], offline_run], tmp_path / "no")


# Pairs that peft alone refuses to merge, or merges wrongly since the result has the config of the first.
FOREIGN: dict[str, list[dict[str, Any]]] = {
    "ranks": [{"target_modules": ["q"], "r": 2}, {"target_modules": ["q", "wo"], "r": 5}],
    "pattern and list": [{"target_modules": r".*SelfAttention\.q$"}, {"target_modules": ["q", "v"]}],
    "rank-stabilized first": [{"target_modules": ["q"], "use_rslora": True}, {"target_modules": ["q"]}],
    "some layers first": [
        {"target_modules": ["q"], "layers_to_transform": [0], "layers_pattern": "block"},
        {"target_modules": ["q", "v"], "exclude_modules": ".*decoder.*"},
    ],
    "layer 0 first": [{"target_modules": ["q"], "layers_to_transform": 0}, {"target_modules": ["q", "v"]}],
    "ranks by layer": [{"target_modules": ["q", "v"], "rank_pattern": {"q": 7}}, {"target_modules": ["q"]}],
}


@pytest.mark.parametrize("pair", FOREIGN.values(), ids=FOREIGN)
def test_peft_adapters_are_summed_exactly(pair: list[dict[str, Any]], tmp_path: Path, tiny_base: Path) -> None:
    adapters = [PeftAdapter(make(tiny_base, tmp_path / f"a{at}", **config)) for at, config in enumerate(pair)]
    result = merge_adapters(adapters, tmp_path / "sum", weights=[0.5, 2.0])
    expected = 0.5 * delta(adapters[0], tiny_base) + 2.0 * delta(adapters[1], tiny_base)
    torch.testing.assert_close(delta(result.run, tiny_base), expected)
    assert result.scores == [] and isinstance(result.run, PeftAdapter)
    merged = load_adapter(load_model(tiny_base), result.run.adapter).state_dict()
    layers = {name.partition(".lora_")[0] for name in merged if ".lora_A" in name}
    states = [load_adapter(load_model(tiny_base), adapter.adapter).state_dict() for adapter in adapters]
    assert layers == {name.partition(".lora_")[0] for state in states for name in state if ".lora_A" in name}


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_peft_adapters_are_merged_like_runs(runs: list[Run], tmp_path: Path, tiny_base: Path, method: str) -> None:
    of_runs = merge_adapters(runs, tmp_path / "runs", method=method, limit=1).run
    of_peft = merge_adapters([PeftAdapter(run.adapter) for run in runs], tmp_path / "peft", method=method).run
    assert torch.equal(delta(of_runs, tiny_base), delta(of_peft, tiny_base))


def test_rank_is_limited_by_the_layers(tmp_path: Path, tiny_base: Path) -> None:
    adapters = [PeftAdapter(make(tiny_base, tmp_path / f"a{at}", target_modules=["q"], r=30)) for at in range(2)]
    result = merge_adapters(adapters, tmp_path / "out", method="ties", density=1.0)
    assert result.rank < 60 and delta(result.run, tiny_base).isfinite().all()


def test_runs_and_peft_adapters_are_merged_together(
    runs: list[Run], tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = make(tiny_base, tmp_path / "theirs", target_modules=["q", "v"]), tmp_path / "both"
    command = ["adapters", "merge", str(runs[0].folder), str(adapter), "--out", str(out), "--limit", "2"]
    assert lora_ft(command) == 0
    shown = capsys.readouterr()
    assert "1 of 2 adapters have no task and are not scored; pass one as --task" in shown.err and "t0" in shown.out
    task = str(runs[1].folder / "task.yaml")
    assert lora_ft([*command, "--task", task, "--overwrite"]) == 0
    assert "theirs on t1" in capsys.readouterr().out
    assert lora_ft(["evaluate", str(out), "--task", task, "--limit", "2"]) == 0
    assert lora_ft(["merge", str(out), "--out", str(tmp_path / "merged")]) == 0


def test_peft_adapters_that_cannot_be_merged_are_refused(runs: list[Run], tmp_path: Path, tiny_base: Path) -> None:
    adapter = make(tiny_base, tmp_path / "biases", target_modules=["q"], bias="all")
    with pytest.raises(UsageError, match=r"more than LoRA's matrices \(bias\)"):
        merge_adapters([runs[0], PeftAdapter(adapter)], tmp_path / "no")
    configure(adapter, bias="none", init_lora_weights="olora")
    with pytest.raises(UsageError, match=r"more than LoRA's matrices \(init_lora_weights olora\)"):
        merge_adapters([runs[0], PeftAdapter(adapter)], tmp_path / "no")
    configure(adapter, base_model_name_or_path="elsewhere/t5")
    with pytest.raises(UsageError, match="has the base elsewhere/t5") as caught:
        merge_adapters([runs[0], PeftAdapter(adapter)], tmp_path / "no")
    assert "--base" in caught.value.remedy and not (tmp_path / "no").exists()
    plain = make(tiny_base, tmp_path / "plain", target_modules=["q"])
    configure(plain, base_model_name_or_path=None)
    assert merge_adapters([PeftAdapter(plain), runs[0]], tmp_path / "yes", base=str(tiny_base), limit=1).rank == 6


def test_out_is_locked_before_anything_is_loaded(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def require_lock(*_: object) -> None:
        assert holds(tmp_path / "out")
        raise UsageError("stop here", "")

    monkeypatch.setattr(sys.modules["lora_ft.merge_adapters"], "_load", require_lock)
    with pytest.raises(UsageError, match="stop here"):
        merge_adapters(runs, tmp_path / "out")

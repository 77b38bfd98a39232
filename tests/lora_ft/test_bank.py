"""Banks of runs: export, add and remove. Unsupported adapters are refused, and the bank stays unchanged."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from lora_ft.bank import add, export_bank, remove
from lora_ft.cli import run as command
from lora_ft.compare import compare
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.deployment.bank_adapter import PeftReference, VerificationSettings, named_runs
from lora_ft.deployment.bank_entries import entries
from lora_ft.evaluate import evaluate, evaluate_bank
from lora_ft.export.runtime import Generator
from lora_ft.export_onnx import export_onnx
from lora_ft.generate import generate, stream
from lora_ft.models.bases import find_base, load_model
from lora_ft.models.loading import load
from lora_ft.runs.run import Run
from lora_ft.tasks.files import load_task
from lora_ft.tasks.metric_names import SCORES_OF
from lora_ft.train import train
from lora_ft.verify import verify
from tests.conftest import write_task
from tests.test_base_install import COMMAND, python
from tests.tiny import save_tiny_t5

TEXTS = ["abc", "a much longer text that is cut somewhere at forty eight tokens or so", "x", "some words"]
CHECKS = VerificationSettings(rows=4)


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Run:
    """Return a run of another task on the same base: all linear layers, rsLoRA, other ranks and another prompt."""
    folder = tmp_path_factory.mktemp("other")
    lora = {"preset": "default", "r": 3, "lora_alpha": 9, "use_rslora": True, "rank_pattern": {"wo": 2}}
    task = write_task(
        folder,
        tiny_base,
        name="other",
        prompt="echo {text}!",
        lora=lora,
        lengths={"source": 30, "target": 9},
        generate={"num_beams": 2},
    )
    return train(load_task(task), folder / "run")


@pytest.fixture(scope="session")
def published(tiny_run: Run, other_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bank of both runs that no test may change."""
    out = tmp_path_factory.mktemp("bank") / "bank"
    export_bank([str(tiny_run.folder), f"second={other_run.folder}"], out, checks=CHECKS)
    return out


@pytest.fixture
def bank(published: Path, tmp_path: Path) -> Path:
    """Return a copy of the bank that a test may change."""
    return shutil.copytree(published, tmp_path / "bank")


def edited(run: Run, folder: Path, **config: Any) -> Path:
    """Copy a run and change its adapter_config.json."""
    shutil.copytree(run.folder, folder)
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"repetition_penalty": 1.4}, {"num_beams": 1}])
def test_bank_and_bundles_of_its_runs_generate_the_same_answers(
    published: Path, tiny_run: Run, other_run: Run, tmp_path: Path, options: dict[str, Any]
) -> None:
    for name, run in (("tiny", tiny_run), ("second", other_run)):
        export_onnx(str(run.folder), tmp_path / name, verify_rows=2)
        expected = generate(load(str(tmp_path / name)), TEXTS, options)
        assert generate(load(str(published), adapter=name), TEXTS, options) == expected
    expected_base = generate(load(str(published)), TEXTS, options)
    export_onnx(tiny_run.task.base, tmp_path / "base")
    assert generate(load(str(tmp_path / "base")), TEXTS, options) == expected_base


def test_rows_are_answered_by_the_adapter_that_they_name(published: Path, tmp_path: Path) -> None:
    rows = [
        {"text": text, "adapter": name} for text, name in zip(TEXTS, ["second", "tiny", "tiny", "second"], strict=True)
    ]
    model = load(str(published))
    answers = generate(model, rows, {})
    for name in ("tiny", "second"):
        alone = load(str(published), adapter=name)
        indices = [i for i, row in enumerate(rows) if row["adapter"] == name]
        assert [answers[i] for i in indices] == generate(alone, [rows[i]["text"] for i in indices], {})
    streamed = "".join(stream(model, rows, {"num_beams": 1})).splitlines()
    assert streamed == generate(model, rows, {"num_beams": 1})
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert command(["generate", str(published), "--input", str(file), "--out", str(tmp_path / "out.jsonl")]) == 0
    assert [json.loads(line)["output"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == answers


def test_command_line_exports_and_changes_a_bank(
    tiny_run: Run, other_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, first, second = str(tmp_path / "bank"), str(other_run.folder), str(tiny_run.folder)
    assert command(["export", "--adapters", first, second, "--out", out, "--verify-rows", "2"]) == 0
    assert command(["bank", "add", out, f"a={second}", f"b={second}", "--verify-rows", "2"]) == 0
    assert command(["bank", "remove", out, "a"]) == 0
    assert "without a" in capsys.readouterr().out
    assert command(["bank", "list", out]) == 0
    listed = capsys.readouterr().out
    assert "other" in listed and "2 of 2" in listed and max(map(len, listed.splitlines())) <= 80
    assert command(["verify", out]) == 0
    assert "adapter b: 6 of 6" in capsys.readouterr().out
    assert command(["generate", out, "--adapter", "b", "abc"]) == 0
    assert capsys.readouterr().out.strip() == generate(load(second), ["abc"], {})[0]
    assert command(["generate", out, "--adapter", "a", "abc"]) == 2
    assert "no adapter 'a'; choose one of b, other, tiny" in capsys.readouterr().err
    assert command(["export", first, second, "--out", out]) == 2
    assert "--adapters" in capsys.readouterr().err


def test_bank_is_listed_in_the_base_install(published: Path) -> None:
    listed = python([sys.executable], COMMAND, "bank", "list", str(published))
    assert "second" in listed and "4 of 4" in listed


def test_added_adapter_equals_an_exported_one(bank: Path, other_run: Run) -> None:
    before = state(bank)
    result = add(bank, [f"third={other_run.folder}"], checks=CHECKS)
    assert result.reports["third"].passed
    after = state(bank)
    assert {name for name in before if after.get(name) != before[name]} == {"manifest.json"}
    (new,) = after.keys() - before.keys()
    assert new.startswith("adapters/third.")
    generator = Generator.load(bank)
    assert generator.adapters == ["second", "third", "tiny"]
    assert generator.generate(TEXTS, adapter="third") == generator.generate(TEXTS, adapter="second")
    assert verify(bank).adapters["third"].passed
    remove(bank, ["third"])
    assert state(bank).keys() == before.keys()
    assert [entry.name for entry in entries(bank)] == ["second", "tiny"]


def test_rounded_bank_records_its_score(tiny_run: Run, other_run: Run, tmp_path: Path) -> None:
    checks = VerificationSettings(rows=4, score_rows=6, max_drop=100)
    result = export_bank([str(tiny_run.folder)], tmp_path / "bank", precision="int8", checks=checks)
    assert 0 < result.reports["tiny"].divergence < 0.05
    (entry,) = entries(tmp_path / "bank")
    assert entry.gate is not None and entry.gate["passed"] and entry.gate["rows"] == 6
    assert verify(tmp_path / "bank").manifest["precision"] == "int8"


def test_large_loss_of_score_is_refused_unless_forced(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_ft.deployment.quality_gate.QualityGate.passes", lambda gate, change: False)
    with pytest.raises(LoraFtError, match="in this bank loses too much quality"):
        export_bank([str(tiny_run.folder)], tmp_path / "bank", precision="int8", checks=CHECKS)
    assert list(tmp_path.iterdir()) == []
    export_bank(
        [str(tiny_run.folder)], tmp_path / "bank", precision="int8", checks=VerificationSettings(rows=2, force=True)
    )
    (entry,) = entries(tmp_path / "bank")
    assert entry.gate is not None and entry.gate["forced"]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": {"shared": [3]}}, "trainable_token_indices"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
    ],
)
def test_adapter_with_other_parts_than_a_and_b_is_refused(
    bank: Path, tiny_run: Run, tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    before = state(bank)
    with pytest.raises(UsageError, match=f"the adapter of .* has .*{named}"):
        add(bank, [f"new={edited(tiny_run, tmp_path / 'run', **config)}"])
    assert state(bank) == before


def test_another_base_is_refused(bank: Path, tiny_run: Run, tmp_path: Path) -> None:
    base = save_tiny_t5(tmp_path / "base", seed=5)
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    task = yaml.safe_load((run / "task.yaml").read_text())
    (run / "task.yaml").write_text(yaml.safe_dump(task | {"base": str(base)}))
    with pytest.raises(UsageError, match="whose weights differ from this bank's base"):
        add(bank, [f"new={run}"])
    with pytest.raises(UsageError, match="trained on different bases"):
        export_bank([str(tiny_run.folder), f"new={run}"], tmp_path / "out")


def test_adapter_that_exceeds_the_slots_of_a_bank_is_refused(tiny_run: Run, other_run: Run, tmp_path: Path) -> None:
    export_bank([str(tiny_run.folder)], tmp_path / "narrow", checks=CHECKS)
    with pytest.raises(UsageError, match="no adapter slot in this bank; to get a wider bank, export it again"):
        add(tmp_path / "narrow", [str(other_run.folder)])
    export_bank([str(other_run.folder)], tmp_path / "wide", checks=CHECKS)
    with pytest.raises(UsageError, match=r"is too high \(got 8, maximum of this bank: 3\); to get a wider bank"):
        add(tmp_path / "wide", [str(tiny_run.folder)])


def test_adapter_that_differs_from_pytorch_is_refused(
    bank: Path, other_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_ft.export.bundle import bank as bundle_bank

    original: Callable[..., dict[str, np.ndarray]] = bundle_bank.pack_adapter

    def wrong(*arguments: Any) -> dict[str, np.ndarray]:
        return {name: array * np.float32(1.01) for name, array in original(*arguments).items()}

    monkeypatch.setattr(bundle_bank, "pack_adapter", wrong)
    before = state(bank)
    with pytest.raises(LoraFtError, match="differ from PyTorch"):
        add(bank, [f"new={other_run.folder}"], checks=CHECKS)
    assert state(bank) == before
    with pytest.raises(LoraFtError, match="differ from PyTorch"):
        export_bank([str(other_run.folder)], tmp_path / "out", checks=CHECKS)
    assert not (tmp_path / "out").exists()


def test_a_folder_may_have_an_equals_sign_in_its_name(tiny_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "lr=1"
    folder.symlink_to(tiny_run.folder)
    assert list(named_runs([str(folder), f"b={folder}"])) == ["tiny", "b"]


def test_names_in_a_bank_are_unique(bank: Path, tiny_run: Run) -> None:
    with pytest.raises(UsageError, match=r"has an adapter 'tiny'; pass NAME=RUN"):
        add(bank, [str(tiny_run.folder)])
    with pytest.raises(UsageError, match=r"two adapters have the name 'tiny'; rename one with NAME="):
        add(bank, [str(tiny_run.folder), str(tiny_run.folder)])
    assert add(bank, [str(tiny_run.folder)], checks=CHECKS, overwrite=True).reports["tiny"].passed
    with pytest.raises(UsageError, match=r"the adapter name '../up' is invalid"):
        add(bank, [f"../up={tiny_run.folder}"], checks=CHECKS)
    with pytest.raises(UsageError, match=r"no adapter 'none'; choose one of second, tiny"):
        remove(bank, ["tiny", "none"])
    assert [entry.name for entry in entries(bank)] == ["second", "tiny"]


def test_adapter_of_the_head_is_refused(bank: Path, tiny_run: Run, tmp_path: Path) -> None:
    run = edited(tiny_run, tmp_path / "run", target_modules=["q", "v", "lm_head"])
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    weights["base_model.model.lm_head.lora_A.weight"] = np.ones((8, 32), np.float32)
    weights["base_model.model.lm_head.lora_B.weight"] = np.ones((80, 8), np.float32)
    save_file(weights, run / "adapter" / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="adapts the head"):
        add(bank, [f"new={run}"])


def test_adapters_need_a_bank(tiny_base: Path, tiny_run: Run, tmp_path: Path) -> None:
    export_onnx(str(tiny_base), tmp_path / "plain")
    with pytest.raises(UsageError, match="is not a bank; create a bank"):
        add(tmp_path / "plain", [str(tiny_run.folder)])
    with pytest.raises(UsageError, match="no adapter 'tiny'; omit the adapter"):
        load(str(tmp_path / "plain"), adapter="tiny")
    with pytest.raises(UsageError, match="--adapter is supported for banks only"):
        load(str(tiny_run.folder), adapter="tiny")
    with pytest.raises(UsageError, match="--precision auto is not supported for banks"):
        export_bank([str(tiny_run.folder)], tmp_path / "out", precision="auto")


def test_adapter_is_scored_on_its_own_task(published: Path, other_run: Run, tmp_path: Path) -> None:
    run = shutil.copytree(other_run.folder, tmp_path / "run")
    expected = evaluate(str(run), baseline=True)
    scored = evaluate(str(published), adapter="second", baseline=True, predictions=tmp_path / "answers.jsonl")
    assert (scored.task, scored.rows, scored.scores) == ("other", expected.rows, expected.scores)
    assert scored.baseline is not None and expected.baseline is not None
    assert scored.baseline.scores == expected.baseline.scores and scored.warnings == expected.warnings
    compared = compare([str(run), str(tmp_path / "answers.jsonl")])
    assert compared.contenders[0].answers == compared.contenders[1].answers
    limited = evaluate(str(published), adapter="second", overrides=["evaluate.metrics=[f1]"], limit=2)
    assert limited.rows == 2 and set(limited.scores) == set(SCORES_OF["f1"])


def test_bank_is_scored_adapter_by_adapter(bank: Path, tiny_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate_bank(str(bank))
    assert result.scored["tiny"].scores == evaluate(str(bank), adapter="tiny").scores
    assert {name: scored.task for name, scored in result.scored.items()} == {"second": "other", "tiny": "tiny"}
    assert command(["evaluate", str(bank), "--baseline", "--limit", "3"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "over the base" in shown[0] and max(map(len, shown)) <= 80
    assert [line.split()[0] for line in shown[1:3]] == ["second", "tiny"]
    content = json.loads((bank / "manifest.json").read_text())
    content["adapters"]["second"]["task"]["data"]["test"] = "gone.jsonl"
    (bank / "manifest.json").write_text(json.dumps(content))
    assert command(["evaluate", str(bank), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert list(report["scored"]) == ["tiny"] and "gone.jsonl" in report["failed"]["second"]
    assert command(["evaluate", str(bank)]) == 1
    assert "second: not scored: " in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"gone\.jsonl"):
        evaluate(str(bank), adapter="second")


def test_invalid_adapter_names_and_options_are_refused(
    published: Path, tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank, run = str(published), str(tiny_run.folder)
    for arguments, message in (
        (["evaluate", bank, "--adapter", "a"], "no adapter 'a'; choose one of second, tiny"),
        (["evaluate", run, "--adapter", "a"], "--adapter is supported for banks only"),
        (["evaluate", bank, "--predictions", str(tmp_path / "file")], "name it with --adapter"),
        (["chat", bank, "--adapter", "a"], "no adapter 'a'; choose one of second, tiny"),
        (["chat", bank], "add --adapter NAME (adapters: second, tiny)"),
        (["verify", bank, "--adapter", "tiny"], "--adapter requires --against"),
        (["verify", bank, "--against", run, "--adapter", "a"], "no adapter 'a'"),
        (["bench", bank], "is a bank, which cannot be timed"),
        (["compare", bank, run], "for an adapter of a bank, add --adapter NAME"),
    ):
        assert command(arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match="stores no task to score it on; name an adapter, or add --task"):
        evaluate(bank)
    remaining = shutil.copytree(published, tmp_path / "bank")
    remove(remaining, ["second", "tiny"])
    with pytest.raises(UsageError, match="has no adapters; score its base with --task"):
        evaluate_bank(str(remaining))
    assert evaluate(bank, task=tiny_run.task).scores == evaluate(tiny_run.task.base, task=tiny_run.task).scores


def test_adapter_chats(chat_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_bank([f"talk={chat_run.folder}"], tmp_path / "bank", checks=CHECKS)
    talk = ["--rounds", "2", "--start", "Ana: hello", "--greedy", "--max-new-tokens", "8"]
    outputs = []
    for model in ([str(tmp_path / "bank"), "--adapter", "talk"], [str(chat_run.folder)]):
        capsys.readouterr()
        assert command(["chat", *model, *talk]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != ""


def test_adapter_is_compared_again(published: Path, tiny_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    against = ["--against", str(tiny_run.folder), "--rows", "2"]
    assert command(["verify", str(published), "--adapter", "tiny", *against]) == 0
    assert "2 of 2 rows match PyTorch's text" in capsys.readouterr().out.splitlines()[-1]


def test_base_is_loaded_once_for_all_adapters(
    tiny_run: Run, other_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(
        "lora_ft.deployment.bank_adapter.load_model", lambda folder: loaded.append(folder) or load_model(folder)
    )
    export_bank([str(tiny_run.folder), str(other_run.folder)], tmp_path / "bank", checks=CHECKS, precision="int8")
    add(tmp_path / "bank", [f"a={other_run.folder}", f"b={tiny_run.folder}"], checks=CHECKS)
    assert len(loaded) == 2  # once per call
    reference = PeftReference(find_base(tiny_run.task.base))
    before = {name: value.clone() for name, value in reference.plain().state_dict().items()}
    for run in (other_run, tiny_run):
        model = reference.adapted(run)
        assert reference.adapted(run) is model and any("lora_A" in name for name in model.state_dict())
    after = reference.plain().state_dict()
    assert after.keys() == before.keys() and all(after[name].equal(value) for name, value in before.items())


@pytest.mark.parametrize("layout", [[], ["--layout", "single"]])
def test_a_bank_refuses_a_triton_repository_and_names_the_alternatives(
    layout: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(tmp_path), "--adapters", "--triton", "--out", str(tmp_path / "bank"), *layout]
    assert command(words) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "a bank cannot be a Triton repository" in message
    assert "--layout single --triton" in message and "lora-ft serve" in message
    assert not (tmp_path / "bank").exists()

"""Layouts apply a task's generation settings, or name those that they do not."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import UsageError
from lora_ft.core.generation_options import Options
from lora_ft.export.layouts import differences, single, unsupported
from lora_ft.export_onnx import export_onnx
from tests.export.oracle import redraw, torch_model
from tests.tiny import save_tiny_t5

IDS = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
LACKING: list[dict[str, Any]] = [
    {"num_beams": 4},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 3},
    {"bad_words_ids": [[5], [6, 7]]},
    {"suppress_tokens": [9]},
    {"begin_suppress_tokens": [9]},
    {"forced_bos_token_id": 40},
    {"forced_eos_token_id": 1},
]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a tiny checkpoint with a generation_config.json."""

    def write(generation: dict[str, Any]) -> Path:
        folder = redraw(save_tiny_t5(tmp_path / "base"), seed=4, end=1.5)
        (folder / "generation_config.json").write_text(json.dumps(IDS | generation), encoding="utf-8")
        return folder

    return write


@pytest.mark.parametrize("generation", LACKING, ids=lambda generation: next(iter(generation)))
def test_single_refuses_a_setting_that_it_does_not_apply(
    save: Callable[..., Path], tmp_path: Path, generation: dict[str, Any]
) -> None:
    ((name, value),) = generation.items()
    with pytest.raises(UsageError) as caught:
        export_onnx(str(save(generation)), tmp_path / "out", layout="single")
    assert "the layout single does not support" in caught.value.message and f"{name} = " in caught.value.message
    assert str(value).strip("[]()")[:1] in caught.value.message
    assert not (tmp_path / "out").exists()


def test_single_names_every_setting_that_it_lacks() -> None:
    together = {name: value for generation in LACKING for name, value in generation.items()}
    assert unsupported("single", together) == together
    assert unsupported("optimum", together) == {}


def test_every_option_of_generation_is_an_input_or_refused() -> None:
    """A new option must not pass `single` unnoticed."""
    not_settings = {"labels", "allowed", "output_scores"}  # no settings of a checkpoint
    for name, value in vars(Options()).items():
        changed = 3 if value is None or value == () else value + 1 if type(value) in (int, float) else not value
        supported = name in single._INPUTS or name in single._SAME_ANSWERS or name in not_settings
        assert supported or unsupported("single", {name: changed}) == {name: changed}
        assert not unsupported("single", {name: value})


@pytest.mark.parametrize(
    "generation",
    [
        {"num_beams": 1, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "bad_words_ids": []},
        {"length_penalty": 2.0, "early_stopping": True, "min_length": 5, "max_length": 9},
    ],
)
def test_single_takes_settings_that_change_nothing_or_are_its_inputs(
    save: Callable[..., Path], tmp_path: Path, generation: dict[str, Any]
) -> None:
    export_onnx(str(save(generation)), tmp_path / "out", layout="single")
    assert json.loads((tmp_path / "out" / "lora-ft.json").read_text())["differences"] == []


def test_force_leaves_settings_out_and_says_so(save: Callable[..., Path], tmp_path: Path) -> None:
    export_onnx(str(save({"num_beams": 4, "max_length": 13})), tmp_path / "out", layout="single", force=True)
    record = json.loads((tmp_path / "out" / "lora-ft.json").read_text())
    assert record["differences"] == ["num_beams = 4 is not applied"]
    assert "num_beams" not in json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert "| differs from bundles | num_beams = 4 is not applied |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("sampled", [False, True])
def test_the_example_of_single_generates_with_the_settings_of_the_task(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: bool
) -> None:
    settings = {"do_sample": True, "top_k": 7, "temperature": 0.5} if sampled else {}
    folder = save({"min_new_tokens": 6, "max_new_tokens": 9, "eos_token_id": [1, 5, 30, 41], **settings})
    export_onnx(str(folder), tmp_path / "out", layout="single")
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "out")
    variables = runpy.run_path(str(tmp_path / "example.py"))
    assert 6 <= variables["sequences"].shape[1] <= 9
    if sampled:
        assert variables["inputs"]["top_k"] == 7 and variables["inputs"]["temperature"] == 0.5
        assert variables["inputs"]["uniform"].shape == (2, 9)
    else:
        import torch

        inputs = {name: torch.from_numpy(variables["inputs"][name]) for name in ("input_ids", "attention_mask")}
        assert torch_model(folder).generate(**inputs)[:, 1:].tolist() == variables["sequences"].tolist()


def test_optimum_names_what_its_consumers_ignore() -> None:
    assert differences("optimum", {"num_beams": 1}, (), "none") == []
    (beams,) = differences("optimum", {"num_beams": 4}, (), "none")
    assert "transformers.js ignores num_beams = 4" in beams
    labels, codec = differences("optimum", {}, ("yes", "no"), "json")
    assert "2 labels are not enforced" in labels and "codec json" in codec


def test_optimums_generation_config_keeps_every_setting(save: Callable[..., Path], tmp_path: Path) -> None:
    together = {name: value for generation in LACKING[:5] for name, value in generation.items()}
    export_onnx(str(save(together)), tmp_path / "out", layout="optimum")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert together.items() <= settings.items()


@pytest.mark.parametrize("name", ["optimum", "single"])
def test_restrictions_and_choices_of_this_runtime_are_named(name: str) -> None:
    lines = differences(name, {"json_schema": {"type": "object"}, "do_sample": True, "mbr": 4}, (), "none")
    assert any("json_schema is not enforced" in line for line in lines)
    assert sum("mbr = 4 is not applied" in line for line in lines) == 1

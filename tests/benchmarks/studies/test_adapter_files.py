"""The study of two file formats: both generate the same tokens, and every case is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import benchmarks.studies.adapter_files as module
from benchmarks.studies.bank import make_bank
from lora_ft.core.errors import LoraFtError
from lora_ft.export.runtime import Generator
from lora_ft.models.bases import Base

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="only Linux reports memory by process"
)


def test_every_case_is_measured(tiny_base: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(module.main)
    arguments = ["--base", str(tiny_base), "--counts", "1,2", "--rank", "2", "--rows", "1,3", "--steps", "2"]
    result = CliRunner().invoke(app, [*arguments, "--rounds", "2", "--json", str(tmp_path / "figures.json")])
    assert result.exit_code == 0, result.exception
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [(row["format"], row["adapters"]) for row in figures["loading"]] == [
        (form, count) for count in (1, 2) for form in module.FORMATS
    ]
    assert all(row["seconds"] > 0 and row["resident"] > row["private"] > 0 for row in figures["loading"])
    assert [row["rows"] for row in figures["steps"]] == [1, 3]
    assert len([line for line in result.stdout.splitlines() if line.startswith("|")]) == 2 + 4 + 2 + 2


def test_both_formats_generate_the_same_tokens(tiny_base: Path, tmp_path: Path) -> None:
    make_bank(Base("tiny", tiny_base), tmp_path / "bank", "fp32", 2, ["q", "v"])
    bank = Generator.load(tmp_path / "bank").bank
    assert bank is not None
    arrays = {name: bank.arrays("a0")[name] * np.float32(50) for name in bank.inputs["bank.step"]}
    step = module.Step(tmp_path / "bank", 2)
    tokens = []
    for form in module.FORMATS.values():
        form.write(tmp_path / "file", arrays)
        loaded = form.load(tmp_path / "file")
        tokens.append(step.run(*form.arguments(loaded)))
    assert (tokens[0] == tokens[1]).all() and tokens[0].shape == (2, 1)


def test_dead_process_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoraFtError, match=r"the process that loads .* died"):
        module.measure_loading(tmp_path, "safetensors", tmp_path)

"""The offline base is rebuilt once from its package into a working FLAN-T5, and only from the known bytes."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lora_ft.core.errors import LoraFtError
from lora_ft.data.batching import encode
from lora_ft.data.splits import load_splits
from lora_ft.models import offline_base as offline
from lora_ft.models.bases import find_base, is_offline_cached, load_model, load_tokenizer
from lora_ft.models.offline_base import NOTICE, offline_base
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import SPLITS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rebuilt() -> Iterator[Path]:
    """Rebuild the base to test this code and not a cache. pytest would keep three copies of 308 MB in tmp_path."""
    with tempfile.TemporaryDirectory() as cache:
        yield offline_base(Path(cache))


def test_base_has_all_parameters_in_float32(rebuilt: Path) -> None:
    with safe_open(rebuilt / "model.safetensors", "np") as weights:
        slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118  (not a dictionary)
    assert sum(math.prod(part.get_shape()) for part in slices.values()) == 76_961_152
    assert {part.get_dtype() for part in slices.values()} == {"F32"}


def test_head_is_a_separate_matrix(rebuilt: Path) -> None:
    with safe_open(rebuilt / "model.safetensors", "np") as weights:
        head, shared = weights.get_tensor("lm_head.weight"), weights.get_tensor("shared.weight")
    assert head.shape == shared.shape == (32128, 512)
    assert np.abs(head - shared).max() > 1
    model = load_model(rebuilt)
    assert np.array_equal(model.lm_head.weight.detach().numpy(), head)
    assert np.array_equal(model.shared.weight.detach().numpy(), shared)


def test_base_translates(rebuilt: Path) -> None:
    model, tokenizer = load_model(rebuilt), load_tokenizer(rebuilt)
    ids = torch.tensor(tokenizer.encode(["translate English to German: The house is small."]))
    with torch.no_grad():
        answer = tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=20).tolist())[0]
    assert "Haus" in answer


def test_tokenizer_does_not_truncate(rebuilt: Path) -> None:
    assert json.loads((rebuilt / "tokenizer.json").read_text(encoding="utf-8"))["truncation"] is None
    (ids,) = load_tokenizer(rebuilt).encode(["house " * 100])
    assert len(ids) > 100 and ids[-1] == 1


def test_readme_has_the_notice(rebuilt: Path) -> None:
    assert NOTICE in (rebuilt / "README.md").read_text(encoding="utf-8")


def test_second_call_reuses_the_folder(rebuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in rebuilt.iterdir()}
    monkeypatch.setattr(offline, "find_spec", lambda _: None)  # it would fail without the package
    assert offline_base(rebuilt.parent) == rebuilt
    assert {path: path.stat().st_mtime_ns for path in rebuilt.iterdir()} == before


def test_find_base_returns_the_folder_with_its_notice(rebuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_FT_CACHE", str(rebuilt.parent))
    base = find_base("offline")
    assert (base.name, base.folder, base.notice) == ("offline", rebuilt, NOTICE)
    assert is_offline_cached() and base.config["model_type"] == "t5"


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "tokenizer.json"])
def test_package_with_other_bytes_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(offline._SOURCE, name, "0" * 64)
    with pytest.raises(LoraFtError) as caught:
        offline_base(tmp_path / "cache")
    assert name in caught.value.message and "SHA-256" in caught.value.message
    assert "traceforge-title-model==0.2.0" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_failed_rebuild_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "_PARAMETERS", 1)
    with pytest.raises(LoraFtError, match="has 76,961,152 parameters, not 1"):
        offline_base(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_the_example_fit_its_lengths_with_flans_tokenizer(rebuilt: Path) -> None:
    task = load_task("dialogue-summary")
    splits, tokenizer = load_splits(task), load_tokenizer(rebuilt)
    for name in SPLITS:
        rows = encode(splits[name], tokenizer, task.lengths, name)  # an error where a target is too long
        whole = tokenizer.encode([example.prompt for example in splits[name]])
        assert [row.input_ids for row in rows] == whole
        assert all(2 not in row.input_ids and 2 not in row.labels for row in rows)  # no <unk>

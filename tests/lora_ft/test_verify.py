"""A bundle is what was published, and answers as it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.export.runtime.manifest import describe_files
from lora_ft.export_onnx import compare_again, export_onnx
from lora_ft.runs.run import Run
from lora_ft.verify import verify


@pytest.fixture
def bundle(tiny_run: Run, tmp_path: Path) -> Path:
    return export_onnx(str(tiny_run.folder), tmp_path / "bundle").out


def test_a_bundle_that_is_as_published(bundle: Path, tiny_run: Run) -> None:
    found = verify(bundle)
    assert found.now.rows == found.now.identical_rows == found.then.identical_rows == 6
    assert found.now.largest_difference < 1e-3
    again = compare_again(bundle, str(tiny_run.folder), rows=4)
    assert (again.rows, again.identical_rows) == (4, 4)


def test_a_rounded_bundle_is_held_to_what_it_did(tiny_run: Run, tmp_path: Path) -> None:
    export_onnx(str(tiny_run.folder), tmp_path / "bundle", precision="w8", force=True)
    found = verify(tmp_path / "bundle")
    assert found.now == found.then


def test_answers_that_changed_are_seen(bundle: Path) -> None:
    """Somebody replaced the probe, hashes and all."""
    probe = json.loads((bundle / "probe.json").read_text())
    probe["tokens"][0][0] += 1
    (bundle / "probe.json").write_text(json.dumps(probe))
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"files": describe_files(bundle)}))
    with pytest.raises(LoraFtError, match="5 of 6 rows give PyTorch's text"):
        verify(bundle)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a bundle"):
        verify(tmp_path)

"""`verify` checks that a bundle is unchanged and answers as it did when it was published."""

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


def test_unchanged_bundle_passes(bundle: Path, tiny_run: Run) -> None:
    result = verify(bundle)
    assert result.now.rows == result.now.identical_rows == result.then.identical_rows == 6
    assert result.now.largest_difference < 1e-3
    again = compare_again(bundle, str(tiny_run.folder), rows=4)
    assert (again.rows, again.identical_rows) == (4, 4)


def test_rounded_bundle_is_compared_with_its_published_answers(tiny_run: Run, tmp_path: Path) -> None:
    export_onnx(str(tiny_run.folder), tmp_path / "bundle", precision="w8", force=True)
    result = verify(tmp_path / "bundle")
    assert result.now == result.then


def test_changed_answers_are_detected(bundle: Path) -> None:
    """Replace the probe and its hash, so that only the answers differ."""
    probe = json.loads((bundle / "probe.json").read_text())
    probe["tokens"][0][0] += 1
    (bundle / "probe.json").write_text(json.dumps(probe))
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"files": describe_files(bundle)}))
    with pytest.raises(LoraFtError, match="5 of 6 rows match PyTorch's text"):
        verify(bundle)


def test_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a bundle"):
        verify(tmp_path)

"""Graphs are opened on first use: those of another bundle are refused, and a loaded bundle is found from anywhere."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from lora_ft.core.errors import BundleError
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.manifest import WEIGHTS

TEXT = "some words, and then some more of them"


@pytest.mark.parametrize("name", ["encoder.onnx", WEIGHTS])
def test_graphs_of_another_bundle_are_refused(bundle: Path, name: str) -> None:
    generator = Generator.load(bundle, threads=1, kernel=False)
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match="was replaced after it was loaded"):
        generator.generate(TEXT)


def test_a_graph_is_opened_from_a_copy_of_the_same_bundle(bundle: Path, generator: Generator) -> None:
    loaded = Generator.load(bundle, threads=1)
    shutil.copytree(bundle, bundle.with_name("copy"))
    shutil.rmtree(bundle)
    bundle.with_name("copy").rename(bundle)
    assert loaded.generate(TEXT) == generator.generate(TEXT)


def test_a_bundle_that_was_moved_is_named(bundle: Path) -> None:
    generator = Generator.load(bundle, threads=1, kernel=False)
    bundle.rename(bundle.with_name("moved"))
    with pytest.raises(BundleError, match="was moved or deleted after it was loaded"):
        generator.generate(TEXT)


def test_a_bundle_is_found_from_another_working_directory(
    bundle: Path, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    loaded = Generator.load(bundle.name, threads=1)
    monkeypatch.chdir(tmp_path)
    assert loaded.generate(TEXT) == generator.generate(TEXT)
    assert pickle.loads(pickle.dumps(loaded)).generate(TEXT) == generator.generate(TEXT)

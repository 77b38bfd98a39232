"""A bundle of a tiny checkpoint whose rows end at different lengths, made once, and copies of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_ft.export.runtime import Generator
from tests.export.oracle import make_bundle, redraw
from tests.tiny import save_tiny_t5


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return redraw(save_tiny_t5(tmp_path_factory.mktemp("checkpoint") / "tiny"), seed=4, end=1.5)


@pytest.fixture(scope="session")
def published(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `checkpoint`, only to be read."""
    out = tmp_path_factory.mktemp("published") / "bundle"
    make_bundle(checkpoint, out)
    return out


@pytest.fixture
def bundle(published: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(published, tmp_path / "copy" / "bundle")


@pytest.fixture(scope="session")
def generator(published: Path) -> Generator:
    return Generator.load(published, threads=1)

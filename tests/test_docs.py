"""The documentation builds without a warning, and its generated pages match the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from docs.generators import modules
from docs.generators.__main__ import FILES
from tests.test_layers import ORDER

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", FILES)
def test_generated_file_matches_the_code(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == FILES[name](), "run `python -m docs.generators`"


def test_matrix_has_the_packages_in_their_order() -> None:
    assert modules.ORDER == ORDER


@pytest.mark.slow
def test_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    for tag in ('<script src="http', "fonts.googleapis", '<link rel="stylesheet" href="http'):
        assert tag not in page, "a page loads nothing from the network"

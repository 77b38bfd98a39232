"""Environments of peers: incomplete ones are created again, and failures have a reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lora_ft.bench import peer_environments
from lora_ft.bench.engines import KINDS
from lora_ft.core.errors import LoraFtError


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a temporary cache, and return a folder of requirements that need no package index."""
    requirements = tmp_path / "requirements"
    requirements.mkdir()
    monkeypatch.setenv("LORA_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(peer_environments, "_REQUIREMENTS", requirements)
    return requirements


def test_every_peer_has_pinned_requirements() -> None:
    folder = Path(peer_environments.__file__).with_name("requirements")
    for kind in KINDS.values():
        if kind.peer:
            lines = [line for line in (folder / f"{kind.peer}.txt").read_text().splitlines() if line[:1] != "#"]
            assert lines and all("==" in line for line in lines)


def test_own_engines_use_the_current_environment() -> None:
    assert peer_environments.interpreter("") == sys.executable


def test_environment_is_created_once_for_its_requirements(places: Path) -> None:
    (places / "none.txt").write_text("# nothing\n")
    python = peer_environments.interpreter("none")
    prefix = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert Path(prefix.stdout.strip()) == peer_environments.folder("none") != Path(sys.prefix)
    (peer_environments.folder("none") / "mine").touch()
    assert peer_environments.interpreter("none") == python and (peer_environments.folder("none") / "mine").exists()
    (peer_environments.folder("none") / "installed").unlink()  # as after an interrupted installation
    assert peer_environments.interpreter("none") == python and not (peer_environments.folder("none") / "mine").exists()
    (places / "none.txt").write_text("# nothing else\n")
    assert peer_environments.folder("none") != Path(prefix.stdout.strip())


def test_failed_installation_is_an_error(places: Path) -> None:
    (places / "broken.txt").write_text(f"{places}/missing.whl\n")
    with pytest.raises(LoraFtError, match=r"the packages of broken cannot be installed: ERROR: .*missing"):
        peer_environments.interpreter("broken")
    assert not (peer_environments.folder("broken") / "installed").exists()

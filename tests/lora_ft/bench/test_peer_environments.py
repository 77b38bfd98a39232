"""Environments of peers are made whole or made again, and one that cannot be made says why."""

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
    """The cache, and a folder of requirements that no index is asked for."""
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


def test_ours_needs_none() -> None:
    assert peer_environments.interpreter("") == sys.executable


def test_an_environment_is_made_once_and_again_for_other_requirements(places: Path) -> None:
    (places / "none.txt").write_text("# nothing\n")
    python = peer_environments.interpreter("none")
    prefix = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert Path(prefix.stdout.strip()) == peer_environments.folder("none") != Path(sys.prefix)
    (peer_environments.folder("none") / "mine").touch()
    assert peer_environments.interpreter("none") == python and (peer_environments.folder("none") / "mine").exists()
    (peer_environments.folder("none") / "installed").unlink()  # as if it had been killed
    assert peer_environments.interpreter("none") == python and not (peer_environments.folder("none") / "mine").exists()
    (places / "none.txt").write_text("# nothing else\n")
    assert peer_environments.folder("none") != Path(prefix.stdout.strip())


def test_a_failed_installation_is_an_error(places: Path) -> None:
    (places / "broken.txt").write_text(f"{places}/missing.whl\n")
    with pytest.raises(LoraFtError, match=r"the packages of broken cannot be installed: ERROR: .*missing"):
        peer_environments.interpreter("broken")
    assert not (peer_environments.folder("broken") / "installed").exists()

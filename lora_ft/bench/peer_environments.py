"""Environments of peers: made once from pinned requirements, beside nothing of ours, and kept."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from lora_ft.core.errors import LoraFtError, first_line
from lora_ft.models.bases import cache_folder

_REQUIREMENTS = Path(__file__).with_name("requirements")
_DONE = "installed"


def interpreter(peer: str) -> str:
    """The Python that has the packages of `requirements/{peer}.txt`; ours where `peer` is "".

    Raises:
        LoraFtError: they cannot be installed.
    """
    if not peer:
        return sys.executable
    python = folder(peer) / "bin" / "python"
    if not (folder(peer) / _DONE).is_file():
        _install(peer)
    return str(python)


def folder(peer: str) -> Path:
    """Where the environment lies: another one for other requirements or another Python."""
    content = (_REQUIREMENTS / f"{peer}.txt").read_bytes() + sys.version.encode()
    return cache_folder() / "environments" / f"{peer}-{hashlib.sha256(content).hexdigest()[:12]}"


def _install(peer: str) -> None:
    """Make it where it stays, as environments cannot be moved; `_DONE` says that nothing was left half made."""
    shutil.rmtree(folder(peer), ignore_errors=True)
    python = folder(peer) / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", str(folder(peer))],
        [
            str(python),
            "-m",
            "pip",
            "install",
            "-qq",
            "--disable-pip-version-check",
            "-r",
            str(_REQUIREMENTS / f"{peer}.txt"),
        ],
    ):
        made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if made.returncode:
            why = next((line for line in made.stderr.splitlines() if line.startswith("ERROR")), made.stderr)
            raise LoraFtError(f"the packages of the peer {peer} cannot be installed: {first_line(Exception(why))}")
    (folder(peer) / _DONE).touch()

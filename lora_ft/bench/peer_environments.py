"""Virtual environments of peer engines, created once from pinned requirements and cached."""

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
    """Return the Python with the packages of `requirements/{peer}.txt`; the current one if `peer` is "".

    Raises:
        LoraFtError: The packages cannot be installed.
    """
    if not peer:
        return sys.executable
    python = folder(peer) / "bin" / "python"
    if not (folder(peer) / _DONE).is_file():
        _install(peer)
    return str(python)


def folder(peer: str) -> Path:
    """Return the folder of an environment, which depends on its requirements and the Python version."""
    content = (_REQUIREMENTS / f"{peer}.txt").read_bytes() + sys.version.encode()
    return cache_folder() / "environments" / f"{peer}-{hashlib.sha256(content).hexdigest()[:12]}"


def _install(peer: str) -> None:
    """Create an environment in place, since environments cannot be moved. The file `_DONE` marks it as complete."""
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
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if process.returncode:
            why = next((line for line in process.stderr.splitlines() if line.startswith("ERROR")), process.stderr)
            raise LoraFtError(f"the packages of {peer} cannot be installed: {first_line(Exception(why))}")
    (folder(peer) / _DONE).touch()

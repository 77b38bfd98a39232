"""The instructions of a Dockerfile, and a runner of a stage's COPY and RUN steps in a folder instead of an image."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATH = ROOT / "deploy" / "Dockerfile"


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: Upper-case name, such as RUN.
        text: Its arguments as one line.
    """

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """Arguments: the items of the JSON form, or the words of the shell form."""
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)


def stages(path: Path = PATH) -> list[list[Instruction]]:
    """Return the instructions of each stage, which begins with FROM."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    result: list[list[Instruction]] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, text = line.partition(" ")
        if name == "FROM":
            result.append([])
        if result:
            result[-1].append(Instruction(name, text.strip()))
    return result


def the(stage: list[Instruction], name: str) -> Instruction:
    """Return the last instruction of a name, which is the one that holds."""
    return [instruction for instruction in stage if instruction.name == name][-1]


def run_stage(stage: list[Instruction], folder: Path, replaced: Mapping[str, object]) -> None:
    """Run the COPY and RUN instructions of a stage.

    Args:
        stage: Instructions; the sources of COPY are in the repository.
        folder: Folder in place of the stage's WORKDIR.
        replaced: Replacement of each absolute path or program in RUN.
    """
    folder.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    for instruction in stage:
        if instruction.name == "COPY":
            *sources, target = instruction.words
            for source in sources:
                copy(ROOT / source, folder / target / source if target.endswith("/") else folder / target)
        elif instruction.name == "RUN":
            command = instruction.text
            for text, replacement in replaced.items():
                command = command.replace(text, str(replacement))
            process = subprocess.run(
                ["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert process.returncode == 0, process.stdout + process.stderr


def copy(source: Path, target: Path) -> None:
    """Copy as COPY does, without what Dockerfile.dockerignore leaves out."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)

"""The README's commands run as written, its table is the committed measurement, and its task file is a task."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.readme import updated

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What makes a command short enough for a test; the command itself stays as it is written.
SHORTER = {
    "lora-ft train": "--set train.max_steps=4 --set train.eval_every=4 --set data.limit.validation=4",
    "lora-ft evaluate": "--limit 4",
    "lora-ft export": "--verify-rows 2 --score-rows 4",
    "lora-ft verify": "--rows 2",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("console") for line in block.splitlines()]
    return [line for line in lines if line]


def test_the_tables_are_the_committed_measurements() -> None:
    assert updated(README) == README


def test_its_two_first_commands_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    made = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert made == ["quickstart", "test"]
    assert set(made) <= set(targets)


def test_its_task_file_is_a_task(tmp_path: Path) -> None:
    from lora_ft.tasks.files import load_task

    (tmp_path / "task.yaml").write_text(blocks("yaml")[0])
    assert load_task(tmp_path / "task.yaml").lora.r == 16


@pytest.mark.slow
def test_its_commands_run_in_order(tmp_path: Path) -> None:
    binaries = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    for command in commands():
        if command.startswith("make "):
            continue
        more = next((flags for start, flags in SHORTER.items() if command.startswith(start)), "")
        done = subprocess.run(
            f"{command} {more}", shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        if "generate" in command:
            assert done.stdout.strip(), command
    script = blocks("python")[0]
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("['"), done.stderr


def test_every_verb_is_shown() -> None:
    from lora_ft.cli.verbs import app

    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    shown = {shlex.split(command)[1] for command in commands() if command.startswith("lora-ft ")}
    mentioned = set(re.findall(r"`lora-ft (\w+)`", README)) | {"quickstart"}
    assert verbs <= shown | mentioned

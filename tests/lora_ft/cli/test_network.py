"""No command connects, resolves a name or writes an identifier unless the user asked for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lora_ft.runs.run import Run
from tests.conftest import write_task
from tests.guarded import watched

RUN_ALL = """
import json, sys
from lora_ft.cli import run
for arguments in json.loads(sys.argv[1]):
    print(arguments[0], flush=True)
    if code := run(arguments):
        sys.exit(code)
"""
SUITE = "engines: [onnx/fp32]\nbatch: [1]\nsource: [8]\nnew: [2]\nrounds: 2\n"


def test_no_command_uses_the_network(tiny_base: Path, chat_run: Run, tmp_path: Path) -> None:
    task = write_task(tmp_path, tiny_base, train={"max_steps": 1})
    run, out = str(tmp_path / "trained"), lambda name: ["--out", str(tmp_path / name)]
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE, encoding="utf-8")
    verbs = [
        ["validate", str(task)],
        ["train", str(task), *out("trained")],
        ["evaluate", run],
        ["merge", run, *out("merged")],
        ["export", run, *out("bundle")],
        ["verify", str(tmp_path / "bundle")],
        ["generate", str(tmp_path / "bundle"), "a b"],
        ["generate", run, "a b"],
        ["compare", run, run],
        ["chat", str(chat_run.folder), "--rounds", "1", "--start", "Ann: hello"],
        ["bench", str(tmp_path / "bundle"), "--suite", str(suite), *out("bench")],
    ]
    process, reached, home = watched(tmp_path, [sys.executable, "-c", RUN_ALL, json.dumps(verbs)])
    assert process.returncode == 0, process.stdout + process.stderr
    assert reached == ""
    assert not list(home.rglob("*Microsoft*")) and not list(home.rglob("*deviceid*"))

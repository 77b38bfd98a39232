"""Real signals and a full disk during training: a checkpoint is saved, and the run resumes bit-identically."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.runs.run import working_folder
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from lora_ft.train_many import train_many
from tests.lora_ft.test_train import same, start, wait_for, weights
from tests.lora_ft.test_train_many import start as start_group

MakeTask = Callable[..., Path]
STEPS: dict[str, Any] = {"eval_every": 3, "num_train_epochs": 3, "metric_for_best_model": "loss"}


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_saves_a_checkpoint(make_task: MakeTask, tmp_path: Path, number: signal.Signals, code: int) -> None:
    task, out = make_task(train=STEPS), tmp_path / "run"
    process = start(task, out)
    wait_for(lambda: (working_folder(out) / "log.jsonl").exists(), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"stopped by {number.name} after step".encode() in errors and b"with --resume to continue" in errors
    assert list(working_folder(out).glob("checkpoint-*/complete"))
    resumed = train(load_task(task), out, resume=True)
    assert same(weights(resumed), weights(train(load_task(task), tmp_path / "whole")))


def test_signal_saves_a_snapshot_of_a_group(make_task: MakeTask, tmp_path: Path) -> None:
    tasks = [make_task(name=name, train=STEPS | {"num_train_epochs": 20}) for name in ("one", "two")]
    process = start_group([str(task) for task in tasks], tmp_path / "runs")
    wait_for(lambda: (tmp_path / "runs" / "two.unfinished" / "log.jsonl").exists(), process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and b"with --resume to continue" in errors
    assert len(train_many([load_task(task) for task in tasks], tmp_path / "runs", resume=True).runs) == 2


def test_all_processes_of_torchrun_stop_together(make_task: MakeTask, tmp_path: Path) -> None:
    task, out = make_task(train=STEPS | {"num_train_epochs": 60, "per_device_train_batch_size": 2}), tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launch, "-m", "lora_ft", "train", str(task), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: (working_folder(out) / "log.jsonl").exists(), process)
    os.killpg(process.pid, signal.SIGTERM)  # all of them, as a scheduler does; torchrun then passes it on
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and b"stopped by SIGTERM after step" in errors
    assert list(working_folder(out).glob("checkpoint-*/complete"))


def limit_files() -> None:
    """Limit the size of files, so that the small files of a run can be written, but no checkpoint."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000))


def test_file_size_limit_is_one_line_and_the_run_resumes(make_task: MakeTask, tmp_path: Path) -> None:
    task, out = make_task(train=STEPS), tmp_path / "run"
    command = [sys.executable, "-m", "lora_ft", "train", str(task), "--out", str(out)]
    completed = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit_files, check=False)
    last = completed.stderr.strip().splitlines()[-1]
    assert completed.returncode == 1 and "Traceback" not in completed.stderr
    assert last.startswith(f"error: {working_folder(out)}: ") and "--resume" in last
    assert same(weights(train(load_task(task), out, resume=True)), weights(train(load_task(task), tmp_path / "whole")))


def test_full_disk_is_one_line_and_the_run_resumes_from_its_last_checkpoint(
    make_task: MakeTask, tmp_path: Path
) -> None:
    """The file system is filled after the first checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    mount = f"mount -t tmpfs -o size=1m none {disk}"
    try:
        probe = subprocess.run([*prefix, mount], check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("this machine has no unshare")
    if probe.returncode:
        pytest.skip("this machine mounts nothing for us")
    task = make_task(train=STEPS)
    train_it = f"{sys.executable} -m lora_ft train {task} --out {disk}/run"
    script = f"""
        {mount}
        {train_it} & process=$!
        until [ -e {disk}/run.unfinished/checkpoint-3/complete ]; do sleep 0.01; done
        kill -STOP $process
        dd if=/dev/zero of={disk}/filler bs=1k 2>/dev/null || true
        kill -CONT $process
        code=0; wait $process || code=$?
        ls {disk}/run.unfinished >&2
        rm {disk}/filler
        {train_it} --resume
        echo "$code" > {tmp_path}/code
        cp -r {disk}/run {tmp_path}/run
    """
    completed = subprocess.run([*prefix, script], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert (tmp_path / "code").read_text() == "1\n"
    assert "no space left on the disk" in completed.stderr and "Traceback" not in completed.stderr
    assert "resuming from step" in completed.stderr
    from lora_ft.runs.run import Run

    assert same(weights(Run(tmp_path / "run")), weights(train(load_task(task), tmp_path / "whole")))

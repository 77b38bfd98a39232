"""The whole benchmark on a tiny model: slow and wrong engines are detected, and measured figures are never lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_ft.bench import roofline
from lora_ft.bench.engines import parse
from lora_ft.bench.models import BenchModel, open_bench_model
from lora_ft.bench.regressions import compare
from lora_ft.bench.report import BenchReport
from lora_ft.bench.run import MARKDOWN, PAGE, REPORT, bench
from lora_ft.bench.runner import timed_engines
from lora_ft.bench.suite import Serving, Suite
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.progress import Silent
from lora_ft.export.runtime.manifest import read_manifest
from lora_ft.export_onnx import export_onnx
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from tests.tiny import save_tiny_t5

# Source of an engine that wraps the runtime of a bundle in the checkpoint's parent folder.
ENGINE = """
import time
from functools import partial
from pathlib import Path

from lora_ft.export.runtime import Generator


def load(folder, threads):
    generator = Generator.load(Path(folder).parent / "bundle", threads=threads)

    def generate(ids, mask, new, least):
        tokens = generator.generate_ids(ids, mask, max_new_tokens=new, min_new_tokens=least, prompt_lookup=False)
        {change}
        return tokens

    return generate
"""
CHANGES = {
    "same": "",
    "slow": "time.sleep(0.3)",
    "wrong": "tokens[:, -1] = 7 + (tokens[:, -1] == 7)",
    "short": "tokens = tokens[:, : max(1, new - 1)]",
    "broken": "raise ValueError('no more')",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint with a bundle and an engine file for each of CHANGES in its parent folder."""
    folder = tmp_path_factory.mktemp("bench")
    save_tiny_t5(folder / "base")
    export_onnx(str(folder / "base"), folder / "bundle")
    for name, change in CHANGES.items():
        (folder / f"{name}.py").write_text(ENGINE.replace("{change}", change))
    return folder / "base"


@pytest.fixture(scope="module")
def task(base: Path) -> Task:
    rows = [{"q": f"question {i}", "a": f"answer {i}"} for i in range(12)]
    for split in ("train", "test"):
        (base.parent / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (base.parent / "task.yaml").write_text(
        "{name: tiny, base: x, prompt: 'say {q}', data: {train: train.jsonl, test: test.jsonl, target: a},"
        " lengths: {source: 32, target: 16}, generate: {max_new_tokens: 6}}"
    )
    return load_task(base.parent / "task.yaml")


def run(base: Path, out: Path, *engines: str, task: Task | None = None, **keys: object) -> BenchReport:
    """Run a short suite of engines. Engines of CHANGES are given by their names."""
    names = tuple(str(base.parent / f"{name}.py") if name in CHANGES else name for name in engines)
    suite = Suite.model_validate(
        {"name": "test", "engines": names, "batch": (2,), "source": (9,), "new": (5,), "rounds": 5} | keys
    )
    return bench([str(base)], suite, out, task=task, work=base.parent / "models", overwrite=True)


def test_every_engine_is_timed_in_every_round_of_every_case(base: Path, tmp_path: Path) -> None:
    report = run(
        base,
        tmp_path,
        "torch/fp32",
        "onnx/fp32",
        "single/fp32",
        "onnx/int8",
        batch=(1, 3),
        rounds=3,
        decoding=("greedy", "beams"),
    )
    assert [(case.batch, case.decoding) for case in report.cases] == [
        (1, "greedy"),
        (1, "beams"),
        (3, "greedy"),
        (3, "beams"),
    ]
    for case in report.cases:
        able = {"torch/fp32", "onnx/fp32", "onnx/int8"} | ({"single/fp32"} if case.decoding == "greedy" else set())
        assert case.timings.keys() == able
        for name, timing in case.timings.items():
            assert len(timing.total) == len(timing.first) == len(timing.cpu) == 3
            assert len(timing.encoder) == (0 if name == "single/fp32" else 3)
            assert timing.percentiles.samples == 3 and timing.percentiles.p50 is None
            assert timing.floor is None or timing.floor > 0  # tokens after the first may take no measurable time
        assert case.timings["torch/fp32"].ratio.value == 1
        assert all(timing.identical == 1 for name, timing in case.timings.items() if "fp32" in name)
    for engine in report.contestants:
        assert not engine.error
        for figure in (engine.imports, engine.cold, engine.warm, engine.megabytes, engine.peak, engine.steady):
            assert figure is not None and figure > 0
    assert report.reference == "torch/fp32"
    assert BenchReport.read(tmp_path / REPORT) == report
    assert report.suite.name in (tmp_path / PAGE).read_text() and "torch/fp32" in (tmp_path / MARKDOWN).read_text()


def test_slow_engine_is_detected(base: Path, tmp_path: Path) -> None:
    report = run(base, tmp_path / "both", "same", "slow")
    timing = report.cases[0].timings["slow/fp32"]
    assert timing.ratio.value < 0.5
    before, after = (run(base, tmp_path / name, name) for name in ("same", "slow"))
    renamed = after.model_dump_json().replace("slow/fp32", "same/fp32")
    changes = compare(before, BenchReport.model_validate_json(renamed), tolerance=0.5, max_drop=1)
    assert any(change.worse for change in changes if change.figure == "total")


def test_wrong_engine_is_detected(base: Path, task: Task, tmp_path: Path) -> None:
    report = run(base, tmp_path, "torch/fp32", "same", "wrong", task=task, rows=8)
    errors = {engine.name: engine.error for engine in report.contestants}
    assert errors["torch/fp32"] == errors["same/fp32"] == ""
    assert errors["wrong/fp32"] == "wrong: its tokens differ from the reference's in 2 of 2 rows"
    assert any("wrong/fp32" in warning for warning in report.warnings)
    assert report.quality["same/fp32"].identical == 1
    assert report.quality["wrong/fp32"].identical < 1


def test_failed_engines_are_excluded_with_a_reason(base: Path, tmp_path: Path) -> None:
    report = run(base, tmp_path, "same", "short", "broken")
    errors = {engine.name: engine.error for engine in report.contestants}
    assert errors["same/fp32"] == ""
    assert errors["short/fp32"] == "wrong: it returned 2 rows of [4] tokens (expected 2 of 5)"
    assert errors["broken/fp32"] == "the engine broken/fp32: ValueError: no more"
    assert report.cases[0].timings.keys() == {"same/fp32"}


def test_no_startable_engine_is_an_error(base: Path, tmp_path: Path) -> None:
    (base.parent / "empty.py").write_text("")
    with pytest.raises(LoraFtError, match=r"no engine could be started: .*no attribute"):
        run(base, tmp_path, str(base.parent / "empty.py"))
    assert not (tmp_path / REPORT).exists()


def test_real_rows_are_scored_and_served(base: Path, task: Task, tmp_path: Path) -> None:
    serving = Serving(loads=(0.2, 0.5), requests=12, max_batch=4, slo=30)
    report = run(base, tmp_path, "onnx/fp32", "torch/fp32", task=task, rows=10, rounds=1, serving=serving)
    quality = report.quality["torch/fp32"]
    assert (quality.rows, quality.metric, quality.identical) == (10, task.evaluate.metric, 1)
    assert quality.difference is not None and quality.difference.value == 0
    assert report.quality["onnx/fp32"].difference is None  # the reference
    assert 0 < quality.tokens <= 6
    for service in report.serving.values():
        assert [len(load.seconds) for load in service.loads] == [12, 12]
        assert all(min(load.seconds) > 0 and 1 <= load.batch <= 4 for load in service.loads)
        assert service.knee == service.loads[-1].offered
        assert all(load.goodput == load.answered for load in service.loads)


@pytest.mark.parametrize("engine", ["torch/fp32", "single/fp32", "onnx/int8"])
def test_an_engine_that_cannot_load_the_bundle_is_refused(base: Path, tmp_path: Path, engine: str) -> None:
    suite = Suite(name="x", engines=("onnx/fp32", engine), batch=(1,), source=(8,), new=(4,), rounds=1)
    with pytest.raises(UsageError, match=f"the engine {engine} cannot load a bundle for onnx/fp32") as caught:
        bench([str(base.parent / "bundle")], suite, tmp_path, work=tmp_path)
    assert caught.value.remedy == "pass --engine onnx/fp32"
    assert not (tmp_path / REPORT).exists()


def test_a_bundle_that_no_engine_can_load_is_refused(base: Path, tmp_path: Path) -> None:
    suite = Suite(name="x", engines=("torch/fp32",))
    with pytest.raises(UsageError, match="bundle for onnx/fp32, which is not timed"):
        bench([str(base), str(base.parent / "bundle")], suite, tmp_path, work=base.parent / "models")


def test_each_model_is_timed_by_the_engines_that_can_load_it(base: Path) -> None:
    models = [
        open_bench_model(str(folder), base.parent / "models", Silent()) for folder in (base, base.parent / "bundle")
    ]
    timed = timed_engines(models, Suite(name="x", engines=("torch/fp32", "onnx/fp32")))
    assert [engine.name for engine in timed] == ["base torch/fp32", "base onnx/fp32", "bundle onnx/fp32"]


def test_a_bundle_of_a_checkpoint_is_reused_in_its_precision_alone(base: Path, tmp_path: Path) -> None:
    model = BenchModel("both", tmp_path, base, bundle=base.parent / "bundle")
    engines = [parse(name) for name in ("torch/fp32", "onnx/fp32", "onnx-device/fp32", "onnx/int8")]
    assert model.loadable(engines) == engines
    torch, fp32, device, int8 = (model.prepare(engine, Silent()) for engine in engines)
    assert (torch, fp32, device) == (base, base.parent / "bundle", base.parent / "bundle")
    assert read_manifest(int8)["precision"] == "int8"


def test_a_report_of_few_rounds_is_unstable(base: Path, tmp_path: Path) -> None:
    report = run(base, tmp_path, "onnx/fp32", rounds=4)
    assert report.verdict == "unstable"
    assert "4 rounds are too few to tell whether timings agree (at least 5)" in report.warnings


def test_the_report_names_the_memory_of_the_weights_and_what_computes_a_bundle(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cache, memory in ((2**30, "cache"), (1000, "DRAM")):
        monkeypatch.setattr(roofline, "cache_bytes", lambda cache=cache: cache)
        report = run(base, tmp_path, "onnx/fp32", rounds=1)
        assert [engine.weights_in for engine in report.contestants] == [memory]
        assert [engine.steps_by for engine in report.contestants] == ["graphs: LORA_FT_KERNELS is 0"]
        assert [engine.encoder_by for engine in report.contestants] == ["graph: LORA_FT_KERNELS is 0"]
        assert f" {memory} | graphs | graph |" in (tmp_path / MARKDOWN).read_text()


def test_rows_without_a_task_and_existing_reports_are_refused(base: Path, tmp_path: Path) -> None:
    suite = Suite(name="x", engines=("onnx/fp32",), rows=5)
    with pytest.raises(UsageError, match="no model has a task"):
        bench([str(base)], suite, tmp_path, work=base.parent / "models")
    (tmp_path / REPORT).write_text("{}")
    with pytest.raises(UsageError, match=r"report\.json"):
        bench([str(base)], suite, tmp_path, work=base.parent / "models")


@pytest.mark.usefixtures("default_signals")
def test_ctrl_c_keeps_the_unfinished_report(base: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lora_ft",
        "bench",
        str(base),
        "--engine",
        "onnx/fp32",
        "--batch",
        "1",
        "--batch",
        "2",
        "--source",
        "8",
        "--new",
        "4",
        "--rounds",
        "100000",
        "--out",
        str(tmp_path),
        "--work",
        str(base.parent / "models"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not (tmp_path / REPORT).is_file() and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(3)  # for some rounds
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    report = BenchReport.read(tmp_path / REPORT)
    assert report.interrupted and [case.batch for case in report.cases] == [1]
    assert len(report.cases[0].timings["onnx/fp32"].total) > 3
    assert "interrupted" in printed and "Batch 1" in printed
    assert "The benchmark was interrupted" in (tmp_path / PAGE).read_text()

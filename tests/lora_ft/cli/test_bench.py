"""Commands of `lora-ft bench`: output within 80 columns, and exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_ft.bench.report import BenchReport
from lora_ft.cli import run as lora_ft
from lora_ft.export_onnx import export_onnx
from tests.lora_ft.bench.reports import complete
from tests.lora_ft.bench.test_regressions import slowed
from tests.tiny import save_tiny_t5

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = save_tiny_t5(tmp_path_factory.mktemp("cli") / "base")
    return export_onnx(str(base), base.parent / "bundle").out


def test_bench_times_a_bundle_and_compares_its_report_with_itself(
    bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    flags = ["--batch", "1", "--source", "9", "--new", "5", "--rounds", "3", "--out", str(tmp_path / "out")]
    assert lora_ft(["bench", str(bundle), *flags]) == 0
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith(("warning", "page")))
    assert "Batch 1, 9 tokens in, 5 out, greedy" in printed and "onnx/fp32" in printed
    recorded = BenchReport.read(tmp_path / "out" / "report.json")
    assert (recorded.suite.name, recorded.suite.rounds, recorded.suite.batch) == ("smoke", 3, (1,))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.md"]
    report = str(tmp_path / "out" / "report.json")
    assert lora_ft(["bench", "compare", report, report]) == 0
    assert "1.000" in capsys.readouterr().out


def test_compare_exits_with_1_on_a_regression(tmp_path: Path, capsys: Capture) -> None:
    names = ("torch/fp32", "onnx/fp32", "onnx/int8")
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    complete(names).write(before)
    slowed(complete(names), "onnx/int8", 1.3).write(after)
    assert lora_ft(["bench", "compare", str(before), str(after)]) == 1
    printed = capsys.readouterr().out
    assert "worse" in printed and all(len(line) <= 80 for line in printed.splitlines())
    assert lora_ft(["bench", "compare", str(before), str(after), "--tolerance", "0.5"]) == 0
    assert lora_ft(["bench", "compare", str(after), str(before)]) == 0
    report = complete(names)
    report.model_copy(update={"contestants": report.contestants[:2]}).write(after)
    assert lora_ft(["bench", "compare", str(before), str(after)]) == 1
    assert "missing: onnx/int8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["nowhere"], 2, "nowhere"),
        (["BUNDLE", "--suite", "fast"], 2, "one of gpu, latency, peers"),
        (["BUNDLE", "--engine", "tvm"], 2, "engine 'tvm' does not exist"),
        (["BUNDLE", "--rounds", "0"], 2, "rounds = 0"),
        (["BUNDLE", "--rows", "5"], 2, "--task TASK or --rows 0"),
        (["BUNDLE", "--provider", "tpu"], 2, "provider.0 = 'tpu'"),
        (["compare", "BUNDLE", "BUNDLE"], 2, "Is a directory"),
        (["train", "nothing"], 2, "nothing"),
    ],
)
def test_wrong_usage_is_reported_in_one_line(
    bundle: Path, tmp_path: Path, capsys: Capture, arguments: list[Any], code: int, why: str
) -> None:
    words = [str(bundle) if word == "BUNDLE" else word for word in arguments]
    more = ["--out", str(tmp_path / "out")] if words[0] not in ("compare", "train") else []
    assert lora_ft(["bench", *words, *more]) == code
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert why in line
    assert not (tmp_path / "out").exists()


def test_bench_exits_with_1_if_an_engine_fails(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.py").write_text(
        "def load(folder, threads):\n    return lambda ids, mask, new, least: ids[:, :2]\n"
    )
    flags = [
        "--engine",
        "torch/fp32",
        "--engine",
        str(tmp_path / "mine.py"),
        "--batch",
        "1",
        "--source",
        "9",
        "--rounds",
        "1",
        "--rows",
        "0",
        "--out",
        str(tmp_path / "out"),
        "--work",
        str(tmp_path),
    ]
    assert lora_ft(["bench", str(bundle.parent / "base"), *flags]) == 1
    assert "warning: mine/fp32: wrong: it returned 1 rows" in capsys.readouterr().out

"""The roofline of a step: stored bytes for a bundle, and parameters at the width of the precision for other formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_ft.bench import roofline
from lora_ft.bench.engines import parse
from lora_ft.bench.roofline import read_bandwidth, step_bytes
from lora_ft.export_onnx import export_onnx
from tests.tiny import CONFIG, save_tiny_t5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_t5(tmp_path_factory.mktemp("floor") / "base")


def test_step_bytes_count_parameters_at_the_width_of_the_precision(base: Path) -> None:
    d, width, ff = CONFIG["d_model"], CONFIG["d_kv"] * CONFIG["num_heads"], CONFIG["d_ff"]
    layers = 2 * (4 * d * width + 2 * d * width + 3 * d * ff)
    head = d * CONFIG["vocab_size"]
    for engine, expected in (
        ("torch/fp32", 4 * (layers + head)),
        ("torch/bf16", 2 * (layers + head)),
        ("openvino/int4", (layers + head) / 2),
        ("single/int8-w4", layers / 2 + head),
        ("single/encoder=int8,head=w8", 4 * layers + head),
    ):
        assert step_bytes(parse(engine), base, base) == expected


def test_step_bytes_of_a_bundle_are_its_stored_weights(base: Path) -> None:
    export_onnx(str(base), base.parent / "bundle")
    stored = step_bytes(parse("onnx/fp32"), base.parent / "bundle", base)
    computed = step_bytes(parse("torch/fp32"), base, base)
    assert stored is not None and computed is not None
    assert computed <= stored < 1.2 * computed  # norms and relative-position tables are stored, too


def test_step_bytes_of_a_python_file_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    assert step_bytes(parse(str(tmp_path / "mine.py")), tmp_path, tmp_path) is None


@pytest.mark.parametrize(
    ("size", "memory", "block"),
    [(100, "cache", 100), (1000, "cache", 1000), (1001, "DRAM", 1001), (2**40, "DRAM", 2**28)],
)
def test_bandwidth_is_that_of_a_block_of_the_size_of_the_weights(
    size: int, memory: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "cache_bytes", lambda: 1000)
    monkeypatch.setattr(roofline, "read_bandwidth", float)
    assert roofline.memory_of(size) == memory
    assert roofline.weight_bandwidth(size) == block


def test_bandwidth_is_plausible() -> None:
    assert 1e6 < read_bandwidth(2**20) < 1e13  # the lower bound also holds on a busy machine
    assert np.isfinite(read_bandwidth(4096, rounds=1))

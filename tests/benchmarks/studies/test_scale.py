"""The estimate of costs: its arithmetic and its committed page."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.studies import scale
from benchmarks.studies.scale import PAGE, RESULTS, assumed, cost, largest, measured, page, step_flops
from lora_ft.core.files import read_json
from lora_ft.training.memory_estimates import FLAN, GIB, Batch

TIMINGS = [
    {"precision": precision, "source": source, "target": 16, "adapters": count, "samples_per_second": speed}
    for precision, source in product(("fp32", "bf16"), (24, 256))
    for count, speed in ((0, 18.0), (1, 20.0), (4, 38.0), (8, 40.0), (16, None))
]
MACHINE = {"cores": "2 allowed of 2", "cpu": "A CPU", "gpus": "A GPU", "memory": "23.5 GiB, 20 GiB available"}
CPU_RESULTS = {"environment": MACHINE, "device": "cpu", "rows": 8, "rank": 16, "targets": "q,v", "timings": TIMINGS}


@pytest.mark.parametrize(("count", "speed"), [(1, 20), (2, 26), (4, 38), (6, 39), (8, 40), (100, 40)])
def test_speeds_between_measurements_are_interpolated(count: int, speed: float) -> None:
    assert measured(TIMINGS, 24, 16, "bf16")(count) == pytest.approx(speed)


def test_step_takes_four_operations_per_weight_and_token() -> None:
    shape = FLAN["small"]
    embedding = shape.vocab_size * shape.d_model
    norms = shape.d_model * (2 * shape.num_layers + 3 * shape.num_decoder_layers + 2)
    biases = 2 * 32 * shape.num_heads
    assert step_flops(shape, 1, 1) == 4 * (shape.parameters - embedding - norms - biases)


@given(st.integers(1, 2000), st.integers(1, 300))
def test_speed_up_is_between_one_and_the_number_of_devices(devices: int, most: int) -> None:
    def even(count: int) -> float:
        return 100.0

    single, several = cost(1, most, even), cost(devices, most, even)
    assert several.group <= most and several.groups * several.group >= scale.ADAPTERS
    assert several.seconds <= single.seconds * 1.1  # groups of one device may differ in size
    assert several.hours >= scale.ADAPTERS * scale.SAMPLES / 100 / 3600 * 0.99


def test_small_groups_cost_more_device_hours() -> None:
    speed = assumed(312e12, step_flops(FLAN["small"], 256, 48), 8, scale.ASSUMED[0])
    assert speed(1) < speed(16) < speed(128) < 2 * speed(64)
    assert cost(1, 90, speed).hours < cost(64, 90, speed).hours < cost(500, 90, speed).hours


def test_limit_is_below_twice_the_number_of_adapters() -> None:
    slow, fast = (assumed(peak, 1e10, 8, scale.ASSUMED[0]) for peak in (1e12, 1e15))
    assert scale.limit(90, fast) < scale.limit(90, slow) < 2 * scale.ADAPTERS


def test_largest_group_grows_with_the_memory() -> None:
    batch = Batch(8, 256, 48)
    small, large = (largest(FLAN["small"], 16, batch, gib * GIB, cpu=False) for gib in (24, 80))
    assert 1 < small < large / 3
    assert largest(FLAN["xxl"], 16, batch, 24 * GIB, cpu=False) == 0


def test_page_marks_measured_and_assumed_speeds() -> None:
    shown = page([CPU_RESULTS])
    assert "2 cores of A CPU (speed measured)" in shown and "64 x H100 (speed assumed)" in shown
    assert "24 + 16 tokens:" in shown and "256 + 16 tokens:" in shown


def test_measured_gpu_is_not_assumed() -> None:
    shown = page(
        [CPU_RESULTS, {**CPU_RESULTS, "environment": {**MACHINE, "gpus": "NVIDIA H100 80GB"}, "device": "cuda"}]
    )
    assert "benchmarks.studies.multi_lora`) on 2 cores of A CPU and NVIDIA H100 80GB" in shown
    assert "8 x NVIDIA H100 80GB (speed measured)" in shown
    assert "A100 312 T" in shown and "H100 989 T" not in shown and " H100 (speed assumed)" not in shown


def test_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page([read_json(file) for file in RESULTS])

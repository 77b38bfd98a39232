"""Costs on paper: the arithmetic, and the page that is committed."""

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
FOUND = {"environment": MACHINE, "device": "cpu", "rows": 8, "rank": 16, "targets": "q,v", "timings": TIMINGS}


@pytest.mark.parametrize(("count", "speed"), [(1, 20), (2, 26), (4, 38), (6, 39), (8, 40), (100, 40)])
def test_speeds_are_as_measured_and_straight_between(count: int, speed: float) -> None:
    assert measured(TIMINGS, 24, 16, "bf16")(count) == pytest.approx(speed)


def test_operations_are_four_for_each_weight_that_a_token_meets() -> None:
    shape = FLAN["small"]
    embedding = shape.vocab_size * shape.d_model
    norms = shape.d_model * (2 * shape.num_layers + 3 * shape.num_decoder_layers + 2)
    biases = 2 * 32 * shape.num_heads
    assert step_flops(shape, 1, 1) == 4 * (shape.parameters - embedding - norms - biases)


@given(st.integers(1, 2000), st.integers(1, 300))
def test_more_devices_are_never_slower_and_never_more_than_their_number_faster(devices: int, most: int) -> None:
    def even(count: int) -> float:
        return 100.0

    one, many = cost(1, most, even), cost(devices, most, even)
    assert many.group <= most and many.groups * many.group >= scale.ADAPTERS
    assert many.seconds <= one.seconds * 1.1  # groups of one device may differ in size
    assert many.hours >= scale.ADAPTERS * scale.SAMPLES / 100 / 3600 * 0.99


def test_small_groups_cost_more_device_hours() -> None:
    speed = assumed(312e12, step_flops(FLAN["small"], 256, 48), 8, scale.ASSUMED[0])
    assert speed(1) < speed(16) < speed(128) < 2 * speed(64)
    assert cost(1, 90, speed).hours < cost(64, 90, speed).hours < cost(500, 90, speed).hours


def test_doubling_ends_no_later_than_with_an_adapter_a_device() -> None:
    slow, fast = (assumed(peak, 1e10, 8, scale.ASSUMED[0]) for peak in (1e12, 1e15))
    assert scale.limit(90, fast) < scale.limit(90, slow) < 2 * scale.ADAPTERS


def test_what_fits_is_what_the_planner_lets_in() -> None:
    batch = Batch(8, 256, 48)
    few, many = (largest(FLAN["small"], 16, batch, gib * GIB, cpu=False) for gib in (24, 80))
    assert 1 < few < many / 3
    assert largest(FLAN["xxl"], 16, batch, 24 * GIB, cpu=False) == 0


def test_the_page_says_what_is_measured_and_what_is_not() -> None:
    shown = page([FOUND])
    assert "2 cores of A CPU (speed measured)" in shown and "64 x H100 (speed assumed)" in shown
    assert "24 + 16 tokens:" in shown and "256 + 16 tokens:" in shown


def test_a_gpu_that_is_measured_is_not_assumed() -> None:
    shown = page([FOUND, {**FOUND, "environment": {**MACHINE, "gpus": "NVIDIA H100 80GB"}, "device": "cuda"}])
    assert "benchmarks.studies.multi_lora`) on 2 cores of A CPU and NVIDIA H100 80GB" in shown
    assert "8 x NVIDIA H100 80GB (speed measured)" in shown
    assert "A100 312 T" in shown and "H100 989 T" not in shown and " H100 (speed assumed)" not in shown


def test_the_page_is_of_the_committed_measurement() -> None:
    assert PAGE.read_text(encoding="utf-8") == page([read_json(file) for file in RESULTS])

"""The latency benchmark: engines in processes of their own, equal work, and a dead engine is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.latency import Engine, Worker, compare
from export.errors import LoraFtError
from lora_ft.export_run import export
from tests.tiny import save_tiny_t5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its vocabulary is T5's: the benchmark draws tokens up to 30,000."""
    return save_tiny_t5(tmp_path_factory.mktemp("wide") / "base", vocab_size=32128)


@pytest.fixture(scope="module")
def bundle(base: Path) -> Path:
    return export(str(base), base.parent / "bundle").out


def test_both_engines_are_timed_in_every_round(base: Path, bundle: Path) -> None:
    rounds: list[int] = []
    results = compare(
        [Engine("torch", base), Engine("onnx", bundle)], batches=(1, 2), source=9, new=5, rounds=3, done=rounds.append
    )
    assert rounds == [1, 2, 3, 4, 5, 6]
    assert [result.batch for result in results] == [1, 2]
    for result in results:
        assert {name: len(values) for name, values in result.seconds.items()} == {"torch": 3, "onnx": 3}
        ratios = sorted(a / b for a, b in zip(result.seconds["torch"], result.seconds["onnx"], strict=True))
        assert result.ratio == {"torch": 1.0, "onnx": ratios[1]}


def test_an_engine_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoraFtError, match="the engine onnx ended"), Worker(Engine("onnx", tmp_path)):
        pass

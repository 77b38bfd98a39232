"""Engines are parsed from their names, and unknown ones are refused with the alternatives."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ft.bench.engines import KINDS, parse
from lora_ft.bench.worker import LOAD, PACKAGES
from lora_ft.core.errors import UsageError


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_of_an_engine_is_parsed(kind: str) -> None:
    for precision in KINDS[kind].precisions:
        engine = parse(f"{kind}/{precision}")
        assert (engine.kind, engine.precision, engine.name) == (kind, precision, f"{kind}/{precision}")
    assert parse(kind).precision == "fp32"
    assert kind in LOAD and kind in PACKAGES


def test_mixed_precision_has_the_name_of_the_exporter() -> None:
    assert parse("onnx/encoder=int8,decoder=w4g128,head=w8,embedding=int8").name == "onnx/int8-w4"
    assert parse("onnx/encoder=int8").precision.startswith("encoder=int8,")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tvm", "engine 'tvm' does not exist"),
        ("torch/int8", "precision 'int8' is not supported by engine torch"),
        ("onnx/int3", "precision 'int3' is unknown"),
        ("openvino/w4", "choose one of fp32, bf16, int8, int4"),
        ("mine.py", "file mine.py does not exist"),
    ],
)
def test_unknown_engines_are_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse(text)


def test_python_file_is_an_engine(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.touch()
    assert parse(str(file)).name == "mine/fp32"
    engine = parse(f"{file}/int8")
    assert (engine.file, engine.precision, engine.loads, engine.peer) == (file, "int8", "checkpoint", "")
    assert engine.can("greedy") and not engine.can("beams")

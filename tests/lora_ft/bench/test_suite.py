"""Suites: shipped ones are valid, options replace keys, and errors name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ft.bench.suite import Suite, names
from lora_ft.core.errors import UsageError


def test_shipped_suites_are_valid() -> None:
    assert names() == ["gpu", "latency", "peers", "serving", "smoke", "throughput"]
    for name in names():
        suite = Suite.load(name)
        assert suite.name == name and suite.about
    assert Suite.load("serving").serving is not None


def test_overrides_replace_keys_of_the_file() -> None:
    suite = Suite.load("peers", {"engines": ["onnx/int8"], "batch": [3], "rounds": None, "new": []})
    assert (suite.engines, suite.batch, suite.rounds, suite.new) == (("onnx/int8",), (3,), 9, (64,))
    assert Suite.load("peers", {"rows": 0}).rows == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("engines: [", "is not YAML"),
        ("- torch", "is not a mapping"),
        ("about: x", r"engines = .*: Field required"),
        ("engines: []", "at least one engine"),
        ("engines: [torch, torch]", "none twice"),
        ("engines: [tvm]", "engine 'tvm' does not exist"),
        ("engines: [torch]\nspeed: 1", r"speed = 1"),
        ("engines: [torch]\nnew: [1]", r"new\.0 = 1"),
        ("engines: [torch]\ndecoding: [wild]", r"decoding\.0 = 'wild'"),
        ("engines: [torch]\nserving: {slo: 0}", r"serving\.slo = 0"),
    ],
)
def test_invalid_suite_is_refused_with_key_and_value(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=why):
        Suite.load(str(file))


def test_unknown_suite_is_refused() -> None:
    with pytest.raises(UsageError, match="one of gpu, latency, peers, serving, smoke, throughput"):
        Suite.load("fast")

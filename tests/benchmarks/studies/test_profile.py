"""The profile of a decoder step by part."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from benchmarks.studies import profile
from benchmarks.studies.profile import measure, part_of, text
from tests.export.oracle import make_bundle
from tests.tiny import save_tiny_t5

PARTS = {"self-attention", "attention over the source", "feed-forward", "norms", "head", "choosing the token"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("profile")
    make_bundle(save_tiny_t5(out / "base"), out / "bundle")
    return out / "bundle"


def test_parts_follow_the_weights_and_add_up(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_ROUNDS", 3)
    monkeypatch.setattr(profile, "read_bandwidth", lambda size: 1e9)
    measured = measure(bundle, 2, 5)
    names = {part.name for part in measured.parts["step"]}
    assert names >= PARTS
    encoder = {part.name for part in measured.parts["encoder"]}
    assert encoder >= {"self-attention", "attention over the source"}  # the encoder computes its keys and values
    assert "choosing the token" not in encoder
    for graph, total in (("encoder", measured.encoder), ("step", measured.step)):
        assert sum(part.milliseconds for part in measured.parts[graph]) == pytest.approx(total)
    assert measured.floor == pytest.approx(measured.weights + measured.keys_and_values)
    assert "| step | head |" in text(measured)


def test_every_node_has_a_part(bundle: Path) -> None:
    graph = onnx.load(bundle / "step.onnx", load_external_data=False).graph
    parts = part_of(graph)
    assert len(parts) == len(graph.node) and "rest" not in parts.values()
    (head,) = (node.name for node in graph.node if any("lm_head" in name for name in node.input))
    assert parts[head] == "head"

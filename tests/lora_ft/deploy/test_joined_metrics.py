"""Metrics of several replicas in one text: each keeps its own values, under its own label."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from lora_ft.deploy.joined_metrics import joined
from lora_ft.serving.metrics import Metrics
from tests.deploy.exposed_metrics import answered_request
from tests.lora_ft.serving.fake_engine import FakeEngine


def text_of(requests: int, folder: Path) -> bytes:
    metrics = Metrics()
    for _ in range(requests):
        metrics.finished(answered_request(), is_served=True)
    metrics.sync({"bank": FakeEngine(folder / "bank")})  # type: ignore[dict-item]
    return metrics.text()


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_sample_is_kept_with_its_replica(tmp_path: Path) -> None:
    texts = {"a": text_of(2, tmp_path), "b": text_of(5, tmp_path)}
    expected = {
        (name, labels | {("replica", replica)}): value
        for replica, text in texts.items()
        for (name, labels), value in samples(text).items()
    }
    assert samples(joined(texts)) == expected


def test_types_are_kept(tmp_path: Path) -> None:
    own = text_of(1, tmp_path)
    types = {line for line in own.decode().splitlines() if line.startswith("# TYPE")}
    assert {line for line in joined({"a": own}).decode().splitlines() if line.startswith("# TYPE")} == types


def test_no_replica_is_an_empty_text() -> None:
    assert joined({}) == b""

"""The names of all metrics of the server, with their labels."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from lora_ft.serving.metrics import Metrics
from lora_ft.serving.request_record import RequestRecord
from tests.lora_ft.serving.fake_engine import FakeEngine


def answered_request() -> RequestRecord:
    """Return the record of a request that got an answer of three tokens."""
    record = RequestRecord("id", "POST", "/v1/generate", status=200, model="bank")
    for finish in (None, None, "stop"):
        record.count((0, 0), 1, finish)
    return record


@functools.cache
def exposed() -> dict[str, set[str]]:
    """Return the labels of each series after one request of a server."""
    metrics = Metrics()
    metrics.finished(answered_request(), is_served=True)
    with tempfile.TemporaryDirectory() as folder:
        metrics.sync({"bank": FakeEngine(Path(folder) / "bank")})  # type: ignore[dict-item]
    families = text_string_to_metric_families(metrics.text().decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}

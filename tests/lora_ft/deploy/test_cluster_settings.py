"""Arguments of the application on a cluster, as texts of a command line and as values of a file."""

from __future__ import annotations

from typing import Any

import pytest

from lora_ft.core.errors import UsageError
from lora_ft.deploy.cluster_settings import ClusterSettings


def test_texts_and_values_are_equal() -> None:
    texts = ClusterSettings.of({"bundles": "a,b=c", "max_replicas": "4", "cpus": "2", "memory": "512"})
    values = ClusterSettings.of({"bundles": ["a", "b=c"], "max_replicas": 4, "cpus": 2, "memory": 512})
    assert texts == values
    assert texts.folders == ["a", "b=c"]
    assert (texts.engine.threads, texts.engine.memory, texts.engine.max_rows) == (2, 512 << 20, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "there is no bundle to serve"),
        ({"bundles": "a", "replicas": 2}, "replicas is not an argument"),
        ({"bundles": "a", "max_replicas": "two"}, "max_replicas is not a whole number"),
        ({"bundles": "a", "max_replicas": 1.5}, "max_replicas is not a whole number"),
        ({"bundles": "a", "cpus": True}, "cpus is not a number"),
        ({"bundles": "a", "cpus": 0}, "cpus is too low"),
        ({"bundles": "a", "min_replicas": 3, "max_replicas": 2}, "max_replicas is below min_replicas"),
    ],
)
def test_an_error_names_the_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ClusterSettings.of(arguments)

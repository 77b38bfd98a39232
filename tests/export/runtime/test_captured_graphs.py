"""Calls have an id of their own to be captured by, and work without where nothing can be captured.

No GPU is needed: sessions on the processor take the place of those on a GPU, and ignore the options of a capture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lora_ft.export.runtime import captured_graphs
from lora_ft.export.runtime.captured_graphs import CapturedGraphs
from lora_ft.export.runtime.session import PRODUCT_MODEL, ort_value


class Opened:
    """Opens sessions on the processor, and refuses to capture if `refuses` is set."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses, self.captured = refuses, list[bool]()

    def __call__(self, graph: str, captured: bool) -> ort.InferenceSession:
        self.captured.append(captured)
        if captured and self.refuses:
            raise RuntimeError(self.refuses)
        return ort.InferenceSession(PRODUCT_MODEL, providers=["CPUExecutionProvider"])


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> list[ort.RunOptions]:
    """Return the options of all bound calls."""
    bound: list[ort.RunOptions] = []
    bind = captured_graphs.bind

    def noted(*arguments: Any, options: ort.RunOptions) -> Any:
        bound.append(options)
        return bind(*arguments, options=options)

    monkeypatch.setattr(captured_graphs, "bind", noted)
    return bound


def product(graphs: CapturedGraphs) -> list[int]:
    """Return the first product after each call of a bound graph: the first one, one at once, and one with waiting."""
    x, y = np.ones((4, 64), np.uint8), np.zeros((4, 16), np.int32)
    at_once, waiting = graphs.call("any", {"x": ort_value(x)}, {"y": ort_value(y)})
    products = [int(y[0, 0])]
    for value, call in ((2, at_once), (3, waiting)):
        x[...] = value
        call()
        products.append(int(y[0, 0]))
    return products


PRODUCTS = [64 * 127, 2 * 64 * 127, 3 * 64 * 127]


def test_each_pair_of_calls_is_captured_under_one_id(options: list[ort.RunOptions]) -> None:
    opened = Opened()
    graphs = CapturedGraphs("cuda", opened)
    assert product(graphs) == product(graphs) == PRODUCTS
    assert opened.captured == [True] and not graphs.trouble
    assert [entry.get_run_config_entry("gpu_graph_id") for entry in options] == ["1", "1", "2", "2"]
    waits = [entry.get_run_config_entry("disable_synchronize_execution_providers") for entry in options]
    assert waits == ["1", "0"] * 2


def test_graphs_that_cannot_be_captured_run_without(options: list[ort.RunOptions]) -> None:
    opened = Opened("a node is on the processor\nand more")
    graphs = CapturedGraphs("cuda", opened)
    assert product(graphs) == product(graphs) == PRODUCTS
    assert opened.captured == [True, False] and graphs.trouble == "a node is on the processor"
    with pytest.raises(RuntimeError):
        options[-1].get_run_config_entry("gpu_graph_id")


def test_an_error_that_has_nothing_to_do_with_capturing_is_raised() -> None:
    graphs = CapturedGraphs("cpu", Opened())
    with pytest.raises(Exception, match="nothing"):
        graphs.call("any", {"nothing": ort_value(np.zeros(1))}, {})


@pytest.mark.parametrize("version", ["1.22.1", "1.30.0"])
def test_older_versions_capture_nothing(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    opened = Opened()
    graphs = CapturedGraphs("cuda", opened)
    assert product(graphs) == PRODUCTS
    assert opened.captured == [False] and graphs.trouble == f"onnxruntime {version} is older than 1.31"

"""The builder of ONNX graphs: what it makes is valid and runs, and constants are stored once."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from export.graph import FLOAT, INT64, IR_VERSION, MS, OPSET, Graph


def run(g: Graph, **inputs: np.ndarray) -> list[np.ndarray]:
    model = g.model()
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def constants(g: Graph) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in g.model().graph.initializer}


def test_a_graph_runs_at_any_size_of_its_free_axes() -> None:
    g = Graph("add")
    x = g.input("x", FLOAT, "b", 3)
    g.op("Add", x, g.constant(np.array([1, 2, 3], np.float32)), output=g.output("y", FLOAT, "b", 3))
    for rows in (1, 4):
        [y] = run(g, x=np.ones((rows, 3), np.float32))
        assert np.array_equal(y, np.tile(np.array([2, 3, 4], np.float32), (rows, 1)))


def test_a_fixed_axis_is_held_to() -> None:
    g = Graph("same")
    g.op("Identity", g.input("x", FLOAT, "b", 3), output=g.output("y", FLOAT, "b", 3))
    with pytest.raises(Exception, match="Got invalid dimensions"):
        run(g, x=np.ones((1, 4), np.float32))


def test_a_node_of_several_outputs_names_each() -> None:
    g = Graph("split")
    x = g.input("x", INT64, 6)
    first, second = g.ops("Split", x, g.ints(2, 4), outputs=[None, g.output("rest", INT64, 4)], axis=0)
    assert second == "rest" != first
    g.op("Identity", first, output=g.output("first", INT64, 2))
    rest, begin = run(g, x=np.arange(6))
    assert rest.tolist() == [2, 3, 4, 5] and begin.tolist() == [0, 1]


def test_made_names_never_repeat() -> None:
    g = Graph("names")
    x = g.input("x", FLOAT, 1)
    made = [g.op("Neg", x) for _ in range(20)] + [g.constant(np.array([i], np.float32)) for i in range(20)]
    assert len(set(made)) == 40
    nodes = [node.name for node in g.model().graph.node]
    assert len(set(nodes)) == 20


def test_a_named_constant_is_stored_once() -> None:
    g = Graph("constants")
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert g.constant(table, "table") == g.constant(table, "table") == "table"
    assert g.ints(1, 2) == g.ints(1, 2) != g.ints(2, 1)
    assert g.scalar(5) == g.scalar(5) != g.ints(5)
    stored = constants(g)
    assert len(stored) == 5
    assert np.array_equal(stored["table"], table)


def test_numbers_keep_their_rank() -> None:
    g = Graph("ranks")
    scalar, vector = g.scalar(7), g.ints(7)
    stored = constants(g)
    assert stored[scalar].shape == () and stored[scalar] == 7
    assert stored[vector].shape == (1,) and stored[vector].dtype == np.int64


def test_a_transposed_constant_is_stored_by_its_values() -> None:
    g = Graph("transposed")
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    name = g.constant(table.T)
    assert np.array_equal(constants(g)[name], table.T)


def test_the_model_says_what_reads_it() -> None:
    g = Graph("versions")
    g.op("FastGelu", g.input("x", FLOAT, "b"), output=g.output("y", FLOAT, "b"), domain=MS)
    model = g.model()
    assert model.ir_version == IR_VERSION == 10
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET, MS: 1}
    assert [node.domain for node in model.graph.node] == [MS]

"""The builder of ONNX graphs: what it makes is valid and runs, and constants are stored once, in all of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from lora_ft.export.onnx import graph
from lora_ft.export.onnx.graph import BOOL, FLOAT, INT64, IR_VERSION, MINIMUM_ONNXRUNTIME, MS, OPSET, Graph, WeightFile


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
    end, begin = run(g, x=np.arange(6))
    assert end.tolist() == [2, 3, 4, 5] and begin.tolist() == [0, 1]


def test_made_names_never_repeat() -> None:
    g = Graph("names")
    x = g.input("x", FLOAT, 1)
    names = [g.op("Neg", x) for _ in range(20)] + [g.constant(np.array([i], np.float32)) for i in range(20)]
    assert len(set(names)) == 40
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


def test_a_weight_is_made_only_when_its_name_is_new() -> None:
    g = Graph("weights")
    assert g.weight("table", lambda: np.ones(3, np.float32)) == "table"
    assert g.weight("table", lambda: pytest.fail("made again")) == "table"
    assert np.array_equal(constants(g)["table"], np.ones(3))


def test_once_appends_a_node_once() -> None:
    g = Graph("once")
    x = g.input("x", FLOAT, 1)
    first, again = (g.once("minus", lambda: g.op("Neg", x)) for _ in range(2))
    another = g.once("other minus", lambda: g.op("Neg", x))
    assert first == again != another
    assert len(g.model().graph.node) == 2


def test_the_length_of_an_axis_is_a_number() -> None:
    g = Graph("size")
    x = g.input("x", FLOAT, "b", "n")
    g.op("Identity", g.size(x, 1), output=g.output("y", INT64))
    [y] = run(g, x=np.zeros((2, 5), np.float32))
    assert y.shape == () and y == 5


def doubling(g: Graph) -> None:
    """A loop that doubles x in each of n turns, in which an If adds a table in the first."""
    x, n = g.input("x", FLOAT, "b"), g.input("n", INT64)
    g.scalar(0)
    body = g.body("turn")
    turn, go, value = body.input("turn", INT64), body.input("go", BOOL), body.input("value", FLOAT, "b")
    then, otherwise = body.body("then"), body.body("other")
    then.output(then.op("Add", value, then.constant(np.float32([10]), "ten")), FLOAT, "b")
    otherwise.output(otherwise.op("Identity", value), FLOAT, "b")
    first = body.op("Equal", turn, body.scalar(0))
    result = body.op("If", first, then_branch=then.proto(), else_branch=otherwise.proto())
    body.output(body.op("Identity", go), BOOL)
    body.output(body.op("Mul", result, body.constant(np.float32([2]), "two")), FLOAT, "b")
    true = g.constant(np.array(True), "true")
    g.op("Loop", n, true, x, output=g.output("y", FLOAT, "b"), body=body.proto())


def test_a_body_within_a_body_shares_the_constants_of_the_graph() -> None:
    g = Graph("loop")
    doubling(g)
    assert run(g, x=np.float32([1, 2]), n=np.array(3))[0].tolist() == [88, 96]
    assert set(constants(g)) == {"int.0", "ten", "true", "two"}


def test_names_in_bodies_never_repeat() -> None:
    g = Graph("names")
    body = g.body("body")
    inner = body.body("inner")
    names = [graph.op("Neg", "x") for graph in (g, body, inner, g, inner, body)]
    assert len(set(names)) == 6


def test_a_body_makes_once_what_its_graph_made_too() -> None:
    """A body may run before its graph gets there."""
    g = Graph("once")
    body = g.body("body")
    names = [graph.once("key", lambda graph=graph: graph.op("Neg", "x")) for graph in (g, body, body)]
    assert names[0] != names[1] == names[2]


def written(folder: Path, *tables: tuple[str, np.ndarray]) -> onnx.ModelProto:
    """A graph that adds up tables, which lie beside it."""
    with WeightFile(folder / "weights.bin") as file:
        g = Graph("sum", file)
        total = g.input("x", FLOAT)
        for name, table in tables:
            total = g.op("Add", total, g.op("ReduceSum", g.constant(table, name), keepdims=0))
        g.op("Identity", total, output=g.output("y", FLOAT))
    onnx.save(g.model(), folder / "sum.onnx")
    return g.model()


LARGE = [(f"table {i}", np.random.default_rng(i).standard_normal((7, 50 + i), np.float32)) for i in range(3)]


def test_large_constants_lie_beside_the_graph(tmp_path: Path) -> None:
    model = written(tmp_path, *LARGE, ("small", np.ones(5, np.float32)))
    outside = [tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    assert outside == [name for name, _ in LARGE]
    session = ort.InferenceSession(tmp_path / "sum.onnx", providers=["CPUExecutionProvider"])
    [y] = session.run(None, {"x": np.zeros((), np.float32)})
    assert y == pytest.approx(5 + sum(table.sum(dtype=np.float64) for _, table in LARGE), abs=1e-4)
    arrays = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "sum.onnx").graph.initializer
    }
    assert all(np.array_equal(arrays[name], table) for name, table in LARGE)


def test_constants_beside_the_graph_can_be_mapped(tmp_path: Path) -> None:
    """Each begins at a page."""
    for tensor in written(tmp_path, *LARGE).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == "weights.bin"
        assert int(entries["offset"]) % 4096 == 0
        assert int(entries["length"]) == 4 * np.prod(tensor.dims)


@pytest.mark.parametrize("kind", [np.float32, np.int8, np.uint8, np.int64])
def test_a_constant_beside_the_graph_keeps_its_type_and_order(tmp_path: Path, kind: type) -> None:
    table = np.arange(2000).reshape(40, 50).astype(kind).T
    written(tmp_path, ("table", table))
    [tensor] = onnx.load(tmp_path / "sum.onnx").graph.initializer
    assert np.array_equal(numpy_helper.to_array(tensor), table)
    assert numpy_helper.to_array(tensor).dtype == kind


def test_graphs_of_a_folder_store_a_weight_once(tmp_path: Path) -> None:
    with WeightFile(tmp_path / "weights.bin") as file:
        for name in ("first", "second"):
            g = Graph(name, file)
            table = g.weight("table", lambda: np.full(1000, 3, np.float32) if "table" not in file else pytest.fail())
            private = g.weight(f"{name}.own", lambda name=name: np.full(1000, len(name), np.float32))
            g.op("Add", table, private, output=g.output("y", FLOAT, 1000))
            onnx.save(g.model(), tmp_path / f"{name}.onnx")
    assert (tmp_path / "weights.bin").stat().st_size == 2 * 4096 + 4000
    for name in ("first", "second"):
        session = ort.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        assert (session.run(None, {})[0] == 3 + len(name)).all()


def test_small_constants_of_graphs_of_a_folder_are_their_own(tmp_path: Path) -> None:
    with WeightFile(tmp_path / "weights.bin") as file:
        graphs = [Graph(str(value), file) for value in range(2)]
        for value, g in enumerate(graphs):
            g.constant(np.float32([value]), "number")
    assert [float(constants(g)["number"][0]) for g in graphs] == [0, 1]
    assert (tmp_path / "weights.bin").stat().st_size == 0


def test_the_model_says_what_reads_it() -> None:
    g = Graph("versions")
    g.op("FastGelu", g.input("x", FLOAT, "b"), output=g.output("y", FLOAT, "b"), domain=MS)
    model = g.model()
    assert model.ir_version == IR_VERSION == 10
    # ONNX Runtime 1.20 ends at opset 21: it ignores masks of padded rows, and must refuse
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET, MS: 1} and OPSET == 22
    assert [node.domain for node in model.graph.node] == [MS]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    assert properties["minimum_onnxruntime"] == MINIMUM_ONNXRUNTIME and properties["lora_ft_version"]


@pytest.mark.parametrize("largest", [10_000, 10_000_000])
def test_weights_too_large_for_one_file_are_external(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    """Protobuf ends at 2 GiB, and cannot even count beyond (benchmarks.studies.large does that in earnest)."""
    monkeypatch.setattr(graph, "_LARGEST", largest)
    table = np.arange(10_000, dtype=np.float32)
    proto = onnx.helper.make_graph([], "g", [], [], [numpy_helper.from_array(table, "table")])
    graph.save(onnx.helper.make_model(proto, ir_version=10), tmp_path / "one.onnx")
    assert (tmp_path / "one.onnx_data").is_file() == (largest < table.nbytes)
    (stored,) = onnx.load(tmp_path / "one.onnx").graph.initializer
    assert np.array_equal(numpy_helper.to_array(stored), table)

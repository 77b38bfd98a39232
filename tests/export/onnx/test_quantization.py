"""Rounded weights are close to the originals, and products use exactly the stored weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lora_ft.export.families import t5
from lora_ft.export.onnx.graph import FLOAT, INT64, Graph, WeightFile
from lora_ft.export.onnx.quantization import WEIGHT_FORMATS, Weight, formats_of, portable
from lora_ft.export.precision import NAMED
from lora_ft.export.runtime.session import open_session

ROUNDED = ["int8", "w8", "w4", "w4g128"]
SIZES = {"w8": 128, "w4": 32, "w4g128": 128}  # of blocks
SHAPES = [(1, 1), (5, 7), (16, 32), (33, 31), (17, 96), (48, 100), (3, 1000), (256, 320)]  # outputs, inputs
PEAK = 4.0
WAYS = [("int8", PEAK), ("int8", 0.0), ("w8", PEAK), ("w4", PEAK), ("w4g128", PEAK)]  # 0: without calibration

Run = Callable[[np.ndarray], np.ndarray]


def weights(outputs: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Channels of unlike size."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((outputs, inputs), np.float32) * np.exp(rng.normal(0, 2, (outputs, 1))).astype(
        np.float32
    )


def activations(rows: int, inputs: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, inputs), np.float32).clip(-PEAK, PEAK)


def product(storage: str, weight: np.ndarray, peak: float = PEAK) -> tuple[Run, dict[str, np.ndarray]]:
    """Return (function that multiplies rows with a weight, stored arrays)."""
    outputs, inputs = weight.shape
    g = Graph("product")
    y = g.output("y", FLOAT, "b", outputs)
    WEIGHT_FORMATS[storage].linear(
        g, g.input("x", FLOAT, "b", inputs), Weight(("w",), outputs, inputs, lambda: weight, peak), y
    )
    model = g.model()
    session = open_session(model.SerializeToString(), threads=1)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return lambda x: session.run(None, {"x": x})[0], stored


def read_back(storage: str, stored: dict[str, np.ndarray], inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """(the weight that is stored, the step between neighbouring values), both [outputs, inputs]."""
    key = storage if storage == "int8" else f"{storage[:2]}g{SIZES[storage]}"
    values, step = stored[f"w.{key}"], stored[f"w.{key}.scale"]
    if storage == "int8":
        return values.T * step[:, None], np.repeat(step[:, None], inputs, axis=1)
    if storage != "w8":
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:2], -1)
    zero = 128 if storage == "w8" else 8
    blocks = (values.astype(np.float32) - zero) * step[..., None]
    steps = np.broadcast_to(np.abs(step)[..., None], blocks.shape)
    return tuple(array.reshape(len(values), -1)[:, :inputs] for array in (blocks, steps))


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    """Draw weights of any shape, some with zeros or an outlier."""
    outputs, inputs = draw(st.integers(1, 12)), draw(st.integers(1, 100))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = rng.standard_normal((outputs, inputs)) * 10.0 ** draw(st.integers(-6, 6))
    weight[rng.random(outputs) < draw(st.sampled_from([0, 0.3, 1]))] = 0
    weight[:, rng.random(inputs) < draw(st.sampled_from([0, 0.7]))] = 0
    weight[rng.integers(outputs), rng.integers(inputs)] *= draw(st.sampled_from([1, 1000, -1000]))
    return weight.astype(np.float32)


@pytest.mark.parametrize("storage", ROUNDED)
@given(weight=matrices())
def test_stored_weights_are_within_half_a_step(storage: str, weight: np.ndarray) -> None:
    _, stored = product(storage, weight)
    values, step = read_back(storage, stored, weight.shape[1])
    error = np.abs(values - weight)
    # in a block the side opposite to its peak has one value less: what would take it is a whole step off
    cut = np.abs(weight) > step * (7.5 if storage.startswith("w4") else 127.5)
    assert (error <= step * np.where(cut, 1, 0.5) * 1.0001).all()


@pytest.mark.parametrize("storage", ROUNDED)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_of_each_group_is_kept(storage: str, shape: tuple[int, int]) -> None:
    weight = weights(*shape)
    values, _ = read_back(storage, product(storage, weight)[1], shape[1])
    size = SIZES.get(storage, shape[1])
    for start in range(0, shape[1], size):
        part = slice(start, start + size)
        largest = np.abs(weight[:, part]).argmax(1)[:, None]
        rounded, was = (np.take_along_axis(array[:, part], largest, axis=1) for array in (values, weight))
        np.testing.assert_allclose(rounded, was, rtol=1e-6)


@pytest.mark.parametrize(("storage", "bits"), [("int8", 8), ("w8", 8.25), ("w4", 5), ("w4g128", 4.25)])
def test_weights_take_few_bits(storage: str, bits: float) -> None:
    """A scale for every block of 32 is a bit a weight, of 128 a quarter."""
    _, stored = product(storage, weights(512, 512))
    assert 8 * sum(array.nbytes for array in stored.values()) / 512**2 < bits + 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_is_the_product(shape: tuple[int, int]) -> None:
    weight, x = weights(*shape), activations(6, shape[1])
    run, stored = product("fp32", weight)
    assert np.array_equal(stored["w"], weight.T)
    np.testing.assert_allclose(run(x), x @ weight.T, rtol=1e-4, atol=1e-4 * np.abs(weight).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_calibrated_int8_is_integer_arithmetic(shape: tuple[int, int]) -> None:
    weight, x = weights(*shape), activations(6, shape[1])
    run, stored = product("int8", weight)
    step = np.float32(PEAK / 127)
    whole = np.rint(x / step).astype(np.int64) @ stored["w.int8"].astype(np.int64)
    np.testing.assert_allclose(run(x), whole * (step * stored["w.int8.scale"]), rtol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_exceeds_the_calibrated_peak_counts_as_the_peak(sign: int) -> None:
    weight = np.eye(40, dtype=np.float32)
    run, _ = product("int8", weight)
    x = np.full((1, 40), sign * PEAK, np.float32)
    np.testing.assert_allclose(run(1000 * x), run(x), rtol=0.01)
    np.testing.assert_allclose(run(x), x, rtol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("peak", [0.0, PEAK])
def test_the_largest_sums_of_int8_do_not_overflow(sign: int, peak: float) -> None:
    """Instructions of older machines add pairs of products in 16 bits."""
    run, _ = product("int8", np.full((3, 2048), 0.5, np.float32), peak)
    np.testing.assert_allclose(run(np.full((2, 2048), sign * PEAK, np.float32)), sign * PEAK * 1024, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_without_calibration_takes_the_range_of_each_row(shape: tuple[int, int]) -> None:
    weight, x = weights(*shape), activations(6, shape[1]) * 10.0 ** np.arange(-3, 3, dtype=np.float32)[:, None]
    run, stored = product("int8", weight, peak=0)
    values, _ = read_back("int8", stored, shape[1])
    step = np.abs(x).max(1, keepdims=True) / 127
    assert (np.abs(run(x) - x @ values.T) <= 0.505 * step * np.abs(values).sum(1) + 1e-6 * step).all()


@pytest.mark.parametrize("storage", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 6])
def test_blocks_are_multiplied_as_they_are_stored(storage: str, shape: tuple[int, int], rows: int) -> None:
    """But for the rounding of activations to 8 bits, by blocks of a row."""
    weight, x, size = weights(*shape), activations(rows, shape[1]), SIZES[storage]
    run, stored = product(storage, weight)
    values, _ = read_back(storage, stored, shape[1])
    blocks = np.pad(np.abs(x), ((0, 0), (0, -shape[1] % size))).reshape(rows, -1, size)
    error = np.repeat(blocks.max(-1) / 127 / 2, size, axis=1)[:, : shape[1]]
    allowed = error @ np.abs(values).T
    assert (np.abs(run(x) - x @ values.T) <= 1.02 * allowed + 1e-5 * np.abs(values).max()).all()


@pytest.mark.parametrize(("storage", "peak"), WAYS)
def test_rounding_costs_little(storage: str, peak: float) -> None:
    weight, x = weights(64, 256), activations(32, 256)
    exact = x @ weight.T
    lost = np.linalg.norm(product(storage, weight, peak)[0](x) - exact, axis=0) / np.linalg.norm(exact, axis=0)
    assert lost.max() < {"w4": 0.15, "w4g128": 0.2}.get(storage, 0.02)


def half_product(storage: str, layer: str, weight: np.ndarray) -> onnx.ModelProto:
    outputs, inputs = weight.shape
    g = Graph("product")
    y = g.output("y", FLOAT, "b", outputs)
    storage_of = formats_of(NAMED[storage], t5)
    storage_of(layer).linear(g, g.input("x", FLOAT, "b", inputs), Weight((layer,), outputs, inputs, lambda: weight), y)
    return g.model()


@pytest.mark.parametrize(("storage", "error"), [("fp16", 2**-11), ("bf16", 2**-8)])
def test_half_floats_are_multiplied_as_half_floats(storage: str, error: float) -> None:
    """By the definition of the operators, as not every processor has kernels for them."""
    weight, x = weights(17, 96), activations(5, 96)
    model = half_product(storage, "q", weight)
    onnx.checker.check_model(model, full_check=True)
    [result] = ReferenceEvaluator(model).run(None, {"x": x})
    off = np.abs(result - x @ weight.T) / (np.abs(x) @ np.abs(weight.T))
    assert error / 100 < off.max() < 2 * error


@pytest.mark.parametrize("storage", ["fp16", "bf16"])
def test_half_floats_take_half_the_bytes(storage: str) -> None:
    weight = weights(48, 100)
    g = Graph("rows")
    WEIGHT_FORMATS[storage].rows(g, g.input("ids", INT64, "b"), Weight(("shared",), 48, 100, lambda: weight))
    for model in (half_product(storage, "q", weight), g.model()):
        assert sum(len(tensor.raw_data) for tensor in model.graph.initializer) == 2 * weight.size


@pytest.mark.parametrize("storage", ["fp16", "bf16"])
def test_the_last_projection_of_a_feed_forward_stays_fp32(storage: str) -> None:
    """transformers keeps it so, as its sums go beyond what 16 bits hold."""
    model = half_product(storage, "encoder.block.0.layer.1.DenseReluDense.wo", np.full((3, 4), 3e4, np.float32))
    [result] = open_session(model.SerializeToString(), 1).run(None, {"x": np.full((2, 4), 10, np.float32)})
    assert (result == 1.2e6).all()


@pytest.mark.parametrize("storage", ["fp32", *ROUNDED])
@pytest.mark.parametrize("peak", [0.0, PEAK])
def test_zero_weights_yield_zero(storage: str, peak: float) -> None:
    """However large their inputs are."""
    x = 100 * activations(20, 70)
    assert np.abs(product(storage, np.zeros((5, 70), np.float32), peak)[0](x)).max() < 1e-6
    weight = weights(6, 70)
    weight[2] = 0
    assert np.abs(product(storage, weight, peak)[0](x)[:, 2]).max() < 1e-6


@pytest.mark.parametrize("storage", ["fp32", *ROUNDED])
def test_inputs_with_zero_weights_have_no_effect(storage: str) -> None:
    weight, x = weights(6, 320), activations(4, 320)
    weight[:, 128:] = 0
    run, _ = product(storage, weight)
    changed = x.copy()
    changed[:, 128:] *= 100
    np.testing.assert_allclose(run(changed), run(x), rtol=1e-5)


@pytest.mark.parametrize("storage", ["fp32", *ROUNDED])
@pytest.mark.parametrize("peak", [0.0, PEAK])
def test_inputs_that_are_zero_give_zero(storage: str, peak: float) -> None:
    assert (product(storage, weights(6, 70), peak)[0](np.zeros((4, 70), np.float32)) == 0).all()


@pytest.mark.parametrize(("storage", "peak"), [("fp32", PEAK), *WAYS])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_does_not_depend_on_its_neighbors(storage: str, peak: float, shape: tuple[int, int]) -> None:
    run, _ = product(storage, weights(*shape), peak)
    x = activations(9, shape[1])
    neighbors = 1000 * activations(9, shape[1], seed=7)
    neighbors[[2, 5]] = x[[2, 5]]
    assert np.array_equal(run(x)[[2, 5]], run(neighbors)[[2, 5]])


@pytest.mark.parametrize(("storage", "peak"), WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_alone_is_what_it_is_in_a_batch(storage: str, peak: float, shape: tuple[int, int]) -> None:
    run, _ = product(storage, weights(*shape), peak)
    x = activations(9, shape[1])
    x[3] *= 100
    whole = run(x)
    # some kernels of blocks add the blocks' sums of one row in another order than those of several
    rounding = np.abs(whole).max(1, keepdims=True) * (1e-5 if storage in SIZES else 0)
    assert (np.abs(np.concatenate([run(x[i : i + 1]) for i in range(9)]) - whole) <= rounding).all()
    assert (np.abs(run(x[:4]) - whole[:4]) <= rounding[:4]).all()


@pytest.mark.parametrize("peak", [0.0, PEAK])
def test_a_portable_product_does_not_depend_on_session_options(peak: float) -> None:
    """Sums of pairs of products that do not fit 16 bits."""
    weight, x = np.full((5, 64), 3, np.float32), np.full((4, 64), PEAK, np.float32)
    layer = Weight(("w",), 5, 64, lambda: weight, peak)
    g = Graph("portable")
    portable(WEIGHT_FORMATS["int8"]).linear(g, g.input("x", FLOAT, "b", 64), layer, g.output("y", FLOAT, "b", 5))
    session = ort.InferenceSession(g.model().SerializeToString(), providers=["CPUExecutionProvider"])
    result = session.run(None, {"x": x})[0]
    assert np.array_equal(result, product("int8", weight, peak)[0](x))
    np.testing.assert_allclose(result, x @ weight.T, rtol=0.01)


@pytest.mark.parametrize(("storage", "peak"), [("fp32", PEAK), *WAYS])
def test_any_number_of_axes_is_multiplied(storage: str, peak: float) -> None:
    weight, x = weights(5, 40), activations(6, 40)
    g = Graph("product")
    layer = Weight(("w",), 5, 40, lambda: weight, peak)
    output = WEIGHT_FORMATS[storage].linear(g, g.input("x", FLOAT, "b", "q", 40), layer)
    g.op("Identity", output, output=g.output("y", FLOAT, "b", "q", 5))
    session = open_session(g.model().SerializeToString(), threads=1)
    [y] = session.run(None, {"x": x.reshape(2, 3, 40)})
    np.testing.assert_allclose(y.reshape(6, 5), product(storage, weight, peak)[0](x), rtol=1e-5)


@pytest.mark.parametrize("storage", WEIGHT_FORMATS)
def test_rows_of_a_table_are_looked_up(storage: str) -> None:
    table = weights(20, 33)
    table[7] = 0
    g = Graph("rows")
    rows = WEIGHT_FORMATS[storage].rows(g, g.input("ids", INT64, "b", "q"), Weight(("t",), 20, 33, lambda: table))
    g.op("Identity", rows, output=g.output("y", FLOAT, "b", "q", 33))
    session = open_session(g.model().SerializeToString(), threads=1)
    ids = np.array([[0, 19, 7], [7, 3, 3]])
    [y] = session.run(None, {"ids": ids})
    step = 0 if storage == "fp32" else np.abs(table).max(1) / 127
    assert (np.abs(y - table[ids]) <= (step / 2 * 1.0001 + np.zeros(20))[ids][..., None]).all()
    assert (y[0, 2] == 0).all()


@pytest.mark.parametrize("storage", WEIGHT_FORMATS)
def test_a_second_graph_reads_no_weight_again(storage: str, tmp_path: Path) -> None:
    arrays = [weights(300, 64)] * 4
    layer, graphs = Weight(("w",), 300, 64, arrays.pop, PEAK), []
    with WeightFile(tmp_path / "weights.bin") as file:
        for name in ("first", "second"):
            graphs.append(g := Graph(name, file))
            WEIGHT_FORMATS[storage].linear(g, g.input("x", FLOAT, "b", 64), layer)
            WEIGHT_FORMATS[storage].rows(g, g.input("ids", INT64, "b"), layer)
            arrays.clear()
    outside = [[tensor for tensor in g.model().graph.initializer if tensor.external_data] for g in graphs]
    assert outside[0] == outside[1]
    assert len(outside[0]) == (4 if storage in ROUNDED else 2)


@pytest.mark.parametrize(
    ("layers", "name"),
    [(("a",), "a"), (("a", "b", "c"), "a+b+c"), (("a", "b", "c", "d"), "a+3"), (("a", *"bcdefghijkl"), "a+11")],
)
def test_a_weight_is_named_for_its_layers(layers: tuple[str, ...], name: str) -> None:
    assert Weight(layers, 1, 1, lambda: np.zeros((1, 1), np.float32)).name == name

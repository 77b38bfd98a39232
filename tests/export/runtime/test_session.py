"""Sessions open from files and bytes, with the requested threads and provider."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.export.precision import PROVIDERS
from lora_ft.export.runtime import session as module
from lora_ft.export.runtime.session import choose_provider, on_lines, open_session


@pytest.fixture(scope="module")
def graph() -> bytes:
    """Return the model y = x + x."""
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    add = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "twice", shapes[:1], shapes[1:])
    return helper.make_model(add, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


def test_a_file_and_its_bytes_are_the_same_model(graph: bytes, tmp_path: Path) -> None:
    onnx.save(onnx.load_from_string(graph), tmp_path / "twice.onnx")
    for model in (graph, tmp_path / "twice.onnx"):
        [result] = open_session(model).run(None, {"x": np.array([1, 2.5], np.float32)})
        assert result.tolist() == [2, 5]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_session_has_the_given_number_of_threads(graph: bytes, threads: int) -> None:
    options = open_session(graph, threads).get_session_options()
    assert options.intra_op_num_threads == threads


def test_a_session_uses_all_cores_of_the_process_by_default(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "allowed_cpus", lambda: 5)
    assert open_session(graph).get_session_options().intra_op_num_threads == 5


def test_threads_stop_spinning_between_calls(graph: bytes) -> None:
    assert open_session(graph).get_session_options().get_session_config_entry("session.force_spinning_stop") == "1"


def product() -> onnx.ModelProto:
    """Return the model that multiplies x uint8 [4,64] by int8 [64,16] of 127s."""
    size = numpy_helper.from_array(np.array([64, 16]), "s")
    fill = helper.make_node("ConstantOfShape", ["s"], ["w"], value=numpy_helper.from_array(np.array([127], np.int8)))
    multiply = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [4, 64])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [4, 16])
    graph = helper.make_graph([fill, multiply], "product", [x], [y], [size])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def test_the_product_model_is_the_one_that_overflows() -> None:
    assert onnx.load_from_string(module.PRODUCT_MODEL) == product()


@pytest.mark.parametrize("exact", [True, False])
def test_exact_kernels_are_selected_if_needed(graph: bytes, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_products_are_exact", lambda: exact)
    options = open_session(graph, 1).get_session_options()
    with contextlib.nullcontext() if not exact else pytest.raises(RuntimeError, match="does not have"):
        assert options.get_session_config_entry(module._EXACT) == "1"


def test_products_of_bytes_are_exact() -> None:
    [products] = open_session(product().SerializeToString()).run(None, {"x": np.full((4, 64), 255, np.uint8)})
    assert (products == 255 * 127 * 64).all()


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that onnxruntime has CUDA and a GPU."""
    monkeypatch.setattr(module.ort, "get_available_providers", lambda: list(PROVIDERS.values())[::-1])
    monkeypatch.setattr(module, "_trouble", lambda provider: "")


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that onnxruntime supports only processors."""
    monkeypatch.setattr(module.ort, "get_available_providers", lambda: [PROVIDERS["cpu"]])


@pytest.fixture
def without_a_gpu(with_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_trouble", lambda provider: "libcudart.so is missing" if provider == "cuda" else "")


def test_auto_is_the_installed_provider(without_cuda: None) -> None:
    assert choose_provider("auto") == choose_provider("cpu") == "cpu"


def test_auto_is_cuda_with_a_gpu(with_cuda: None) -> None:
    assert (choose_provider("auto"), choose_provider("cuda"), choose_provider("cpu")) == ("cuda", "cuda", "cpu")


def test_auto_is_the_processor_without_a_gpu(without_a_gpu: None) -> None:
    assert (choose_provider("auto"), choose_provider("cpu")) == ("cpu", "cpu")


@pytest.mark.parametrize(("requested", "precision"), [("cuda", "fp32"), ("auto", "bf16")])
def test_a_missing_gpu_is_reported_with_its_reason(without_a_gpu: None, requested: str, precision: str) -> None:
    message = r"could not start its provider 'cuda': libcudart.so is missing; run `pip install"
    with pytest.raises(LoraFtError, match=message):
        choose_provider(requested, precision)


@pytest.mark.parametrize(
    ("requested", "words"),
    [
        ("cuda", "lacks the provider 'cuda' .it has cpu.; .*onnxruntime-gpu"),
        ("tpu", "provider 'tpu' is unknown; use auto or one of cpu, cuda"),
    ],
)
def test_a_missing_provider_is_refused_by_name(without_cuda: None, requested: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose_provider(requested)


@pytest.mark.parametrize(
    ("precision", "provider"),
    [
        ("fp32", "cuda"),
        ("fp16", "cuda"),
        ("bf16", "cuda"),
        ("int8", "cpu"),
        ("w4", "cpu"),
        ("int8-w4", "cpu"),
        ("encoder=fp16,decoder=fp32,head=bf16,embedding=fp32", "cuda"),
        ("encoder=fp16,head=w4", "cpu"),
    ],
)
def test_auto_is_cuda_only_for_supported_precisions(with_cuda: None, precision: str, provider: str) -> None:
    assert choose_provider("auto", precision) == provider


@pytest.mark.parametrize(
    ("requested", "precision", "words"),
    [
        ("cuda", "int8-w4", r"precision int8-w4 is not supported on cuda \(supported: fp32, fp16, bf16\)"),
        (
            "cpu",
            "bf16",
            r"bf16 is not supported on cpu \(supported: fp32, fp16, int8, w8, w4, int8-w8, int8-w4, int8-w4g128\)",
        ),
        ("auto", "encoder=bf16,head=w4", "is not supported on cpu"),
        ("auto", "what", "the precision 'what' is unknown"),
    ],
)
def test_an_unsupported_precision_is_refused(with_cuda: None, requested: str, precision: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose_provider(requested, precision)


def test_bf16_requires_a_gpu(without_cuda: None) -> None:
    with pytest.raises(UsageError, match=r"lacks the provider 'cuda' \(it has cpu\); .*onnxruntime-gpu"):
        choose_provider("auto", "bf16")


@pytest.fixture
def none_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace CUDA by a provider that does not start. ONNX Runtime would only warn and use the processor."""
    monkeypatch.setitem(PROVIDERS, "cuda", "NoExecutionProvider")
    monkeypatch.setattr(module, "_trouble", module._trouble.__wrapped__)  # what is cached is of this machine


def test_a_provider_that_does_not_start_is_an_error(
    graph: bytes, none_that_starts: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LoraFtError, match="could not start its provider 'cuda'"), pytest.warns(UserWarning):
        open_session(graph, 1, "cuda")
    assert capfd.readouterr() == ("", "")


def test_a_provider_that_stops_starting_is_an_error(
    graph: bytes, none_that_starts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_trouble", lambda provider: "")
    with pytest.raises(LoraFtError, match="it started earlier in this process"), pytest.warns(UserWarning):
        open_session(graph, 1, "cuda")


def test_a_session_runs_on_the_processor(graph: bytes) -> None:
    assert open_session(graph, 1).get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("make", [np.empty, np.zeros])
@pytest.mark.parametrize("shape", [(), (3, 5), (7, 1, 9)])
def test_arrays_begin_on_lines(make: Callable[..., np.ndarray], shape: tuple[int, ...]) -> None:
    arrays = [on_lines(make, shape) for _ in range(4)]
    assert all(array.ctypes.data % 64 == 0 and array.flags.c_contiguous for array in arrays)
    assert all(array.shape == shape and array.dtype == np.float32 for array in arrays)
    assert make is np.empty or not any(array.any() for array in arrays)

"""Sessions are opened from files and from bytes, with the threads that are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.runtime import session as module
from export.runtime.session import open_session


@pytest.fixture(scope="module")
def graph() -> bytes:
    """y = x + x"""
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    add = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "twice", shapes[:1], shapes[1:])
    return helper.make_model(add, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


def test_a_file_and_its_bytes_are_the_same_model(graph: bytes, tmp_path: Path) -> None:
    onnx.save(onnx.load_from_string(graph), tmp_path / "twice.onnx")
    for model in (graph, tmp_path / "twice.onnx"):
        [made] = open_session(model).run(None, {"x": np.array([1, 2.5], np.float32)})
        assert made.tolist() == [2, 5]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_session_has_the_threads_it_was_given(graph: bytes, threads: int) -> None:
    options = open_session(graph, threads).get_session_options()
    assert options.intra_op_num_threads == threads


def test_by_default_a_session_has_the_threads_of_this_process(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "allowed_cpus", lambda: 5)
    assert open_session(graph).get_session_options().intra_op_num_threads == 5


def test_products_of_bytes_are_exact_on_machines_without_vnni(graph: bytes) -> None:
    options = open_session(graph, 1).get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == "1"


def test_a_session_runs_on_the_processor(graph: bytes) -> None:
    assert open_session(graph, 1).get_providers() == ["CPUExecutionProvider"]

"""Calls of ONNX Runtime sessions that bypass its Python wrapper. No other module uses onnxruntime's private names.

A step of a small model takes 1 to 4 ms, and generation is a loop of steps, so the wrapper's overhead counts. It looks
up a run option through an exception (50 µs), and its list of outputs ends with another (40 µs). The C++ objects inside
the wrapper have no such overhead. Their names are not part of onnxruntime's API, so `is_available` checks them once. If
a name is missing, the same calls go through the public wrapper, with the same results.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import onnxruntime as ort

from lora_ft.export.runtime.session import PRODUCT_MODEL

RUN = ort.RunOptions()
# After a run with these options, ONNX Runtime returns unused memory of its arena to the system.
SHRINK_ARENA = ort.RunOptions()
SHRINK_ARENA.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")


@dataclass(frozen=True)
class Binding:
    """A session bound to its inputs and outputs.

    Attributes:
        run: Runs the session once on the present content of the bound memory.
        copies: One function per input in `copied`, which copies its present content to the session's device.
    """

    run: Callable[[], None]
    copies: Sequence[Callable[[], None]]


def bind(
    session: ort.InferenceSession,
    inputs: Mapping[str, ort.OrtValue],
    outputs: Mapping[str, ort.OrtValue],
    copied: Sequence[str] = (),
    options: ort.RunOptions = RUN,
) -> Binding:
    """Bind a session to memory, so that a run takes no arguments.

    The caller keeps the values alive.

    Args:
        session: The session to bind.
        inputs: Value of every input, by name.
        outputs: Memory of every output, by name.
        copied: Inputs in the memory of another device that change between runs.
        options: Options of the runs.
    """
    if not is_available():
        binding = session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        run = partial(session.run_with_iobinding, binding, options)
        return Binding(run, [partial(binding.bind_ortvalue_input, name, inputs[name]) for name in copied])
    native = session.io_binding()._iobinding
    for name, value in inputs.items():
        native.bind_ortvalue_input(name, value._ortvalue)
    for name, value in outputs.items():
        native.bind_ortvalue_output(name, value._ortvalue)
    run = partial(session._sess.run_with_iobinding, native, options)
    # binding a value again copies it
    return Binding(run, [partial(native.bind_ortvalue_input, name, inputs[name]._ortvalue) for name in copied])


def run_positional(
    session: ort.InferenceSession,
    inputs: Sequence[str],
    values: Sequence[ort.OrtValue],
    outputs: Sequence[str],
    provider: str,
    options: ort.RunOptions = RUN,
) -> list[ort.OrtValue]:
    """Run a session once and leave its outputs on the device.

    Args:
        session: The session to run.
        inputs: Names of its inputs.
        values: Value of each input.
        outputs: Names of the outputs to return.
        provider: "cpu" or "cuda": the device of the outputs.
        options: Options of the run.
    """
    if not is_available():
        binding = session.io_binding()
        for name, value in zip(inputs, values, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, provider)
        session.run_with_iobinding(binding, options)
        return list(binding.get_outputs())
    native = _native_module()
    feeds, fetched = native.OrtValueVector(), native.OrtValueVector()
    for value in values:
        feeds.push_back(value._ortvalue)
    devices = [_device(provider)] * len(outputs)
    session.run_with_ortvaluevector(options, inputs, feeds, outputs, fetched, devices)
    return [ort.OrtValue(fetched[i]) for i in range(len(outputs))]  # its iterator ends with an exception


def run_named(
    session: ort.InferenceSession,
    values: Mapping[str, ort.OrtValue],
    outputs: Sequence[str],
    options: ort.RunOptions | None = None,
) -> list[np.ndarray]:
    """Run a session once and return its outputs as arrays.

    Args:
        session: The session to run.
        values: Value of each input, by name. Inputs that an active adapter of `options` provides may be omitted, but
            not with the public wrapper, which raises ValueError if an input is missing.
        outputs: Names of the outputs to return.
        options: Options of the run.
    """
    if not is_available():
        return [value.numpy() for value in session.run_with_ort_values(list(outputs), dict(values), options)]
    feeds = {name: value._ortvalue for name, value in values.items()}
    return [value.numpy() for value in session._sess.run_with_ort_values(feeds, list(outputs), options)]


def keep_alive(session: ort.InferenceSession) -> None:
    """Keep a session alive until the process ends, by a reference that is never dropped."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    if is_available():  # the C++ object too, in case the wrapper drops it while the interpreter shuts down
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session._sess))


@cache
def is_available() -> bool:
    """Return whether this onnxruntime has every private name that this module uses."""
    try:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(PRODUCT_MODEL, options, providers=["CPUExecutionProvider"])
        value = ort.OrtValue.ortvalue_from_numpy(np.zeros((4, 64), np.uint8))
        native = _native_module()
        native.OrtValueVector().push_back(value._ortvalue)
        session.io_binding()._iobinding.bind_ortvalue_input("x", value._ortvalue)
        _device("cpu")
        methods = ("run_with_iobinding", "run_with_ort_values", "run_with_ortvaluevector")
        return all(hasattr(session._sess, name) for name in methods)
    except (AttributeError, ImportError, TypeError):
        return False


def _native_module() -> Any:
    from onnxruntime.capi import onnxruntime_pybind11_state

    return onnxruntime_pybind11_state


@cache
def _device(provider: str) -> Any:
    """Return the first device of a provider."""
    native = _native_module()
    kind = getattr(native.OrtDevice, provider)()
    return native.OrtDevice(kind, native.OrtDevice.default_memory(), 0)

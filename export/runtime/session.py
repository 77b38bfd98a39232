"""Open ONNX Runtime sessions with the settings that were measured to be fastest.

Measured with FLAN-T5-small on two cores (Xeon with VNNI, onnxruntime 1.31):

    threads              all cores of the process; a step on one core takes 1.2 to 1.5 times as long
    spinning             on within a call (without it a step takes 12 to 25 % longer); off between calls, see `_options`
    arena, memory plan   on by default; no difference without either
    prepacked weights    on by default, though every process has its own copy: without, a step takes 2.3 times as long
                         in int8, and 40 times as long in 4 bits
    x64quantprecision    only on processors where sums of byte products overflow, see `_products_are_exact`
    denormals as zero, thread affinity, dynamic block sizes: no gain, so left at their defaults
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.hardware import allowed_cpus
from lora_ft.export.precision import PROVIDERS, parse, supported

_LINE = 64  # bytes
# MatMulInteger: x uint8 [4,64] times the constant int8 [64,16] of 127s, as built by
# tests/export/runtime/test_session.py
PRODUCT_MODEL = base64.b64decode(
    "CAo6lgEKLAoBcxIBdyIPQ29uc3RhbnRPZlNoYXBlKhMKBXZhbHVlKgcIARADSgF/oAEEChgKAXgKAXcSAXkiDU1hdE11bEludGVnZXIS"
    "B3Byb2R1Y3QqGQgCEAdCAXNKEEAAAAAAAAAAEAAAAAAAAABaEwoBeBIOCgwIAhIICgIIBAoCCEBiEwoBeRIOCgwIBhIICgIIBAoCCBBCBAoAEBI="
)
_EXACT = "session.x64quantprecision"
_WARNING, _ERROR, _FATAL = 2, 3, 4  # ONNX Runtime's log levels; the first is its default


def choose_provider(requested: str, precision: str = "fp32") -> str:
    """Return the provider to run a bundle on.

    Args:
        requested: "cpu", "cuda" or "auto". "auto" is CUDA if it starts and supports the precision, else the processor.
        precision: Precision of the bundle, by name or as a mixture.

    Raises:
        UsageError: The provider is unknown, missing from this onnxruntime, or cannot run this precision.
        LoraFtError: The provider does not start; see `open_session`.
    """
    installed = [name for name, provider in PROVIDERS.items() if provider in ort.get_available_providers()]
    able = parse(precision).providers
    name = requested
    if requested == "auto":
        usable = (name for name in reversed(installed) if name in able and not _trouble(name))
        name = next(usable, (*able, *installed)[0])
    if name not in PROVIDERS:
        raise UsageError(f"the provider {name!r} is unknown", f"use auto or one of {', '.join(PROVIDERS)}")
    if name not in able:
        raise UsageError(
            f"precision {precision} is not supported on {name} (supported: {', '.join(supported(name))})",
            "use another provider, or export the model again in another precision",
        )
    if name not in installed:
        raise UsageError(
            f"this onnxruntime {ort.__version__} lacks the provider {name!r} (it has {', '.join(installed)})",
            "install onnxruntime-gpu instead of onnxruntime, or use another provider",
        )
    _require(name)
    return name


def open_session(
    model: Path | bytes, threads: int | None = None, provider: str = "cpu", *, captured: bool = False
) -> ort.InferenceSession:
    """Open a session on a file or a serialized model.

    Args:
        model: Path of the model, or its bytes.
        threads: Threads per call. Default: the cores available to this process (affinity and cgroup quota).
        provider: "cpu" or "cuda".
        captured: Capture a CUDA graph for each value of the run option `gpu_graph_id`. Its values must stay where they
            are. The first call with an id runs the graph three times (microsoft/onnxruntime#32243).

    Raises:
        LoraFtError: The provider does not start, because a driver or a library is missing.
    """
    _require(provider)
    options = _options(threads or allowed_cpus())
    if not _products_are_exact():
        options.add_session_config_entry(_EXACT, "1")
    # operators without a kernel on the first provider run on the processor
    capture = {"enable_cuda_graph": "1"} if captured else {}
    exactly = [{"use_tf32": "0", **capture}, {}] if provider == "cuda" else [{}]  # fp32 means fp32
    providers = list(dict.fromkeys((PROVIDERS[provider], PROVIDERS["cpu"])))
    # CUDA's ScatterND warns once per node that duplicate indices are an error; these graphs never have any
    with _log_level(_ERROR) if provider == "cuda" else contextlib.nullcontext():
        session = ort.InferenceSession(model, options, providers=providers, provider_options=exactly)
    if session.get_providers()[0] != PROVIDERS[provider]:  # ONNX Runtime only warns and continues without it
        raise _not_started(provider, "it started earlier in this process; the GPU memory may be full")
    return session


def on_lines(make: Callable[..., np.ndarray], shape: Sequence[int], dtype: DTypeLike = np.float32) -> np.ndarray:
    """Return an array of this shape from `np.empty` or `np.zeros`, at a multiple of 64 bytes.

    The kernel loads 64 bytes at once, which takes twice as long where they cross two lines of the processor's cache.
    """
    size = np.dtype(dtype).itemsize * math.prod(shape)
    memory = make(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def ort_value(array: np.ndarray, device: str = "cpu") -> ort.OrtValue:
    """Return an array as a value: on the processor a view that keeps the array alive, on a GPU a copy."""
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), device)


def _require(provider: str) -> None:
    """Raise LoraFtError unless this machine can use the provider."""
    if trouble := _trouble(provider):
        raise _not_started(provider, trouble)


def _not_started(provider: str, why: str) -> LoraFtError:
    return LoraFtError(
        f"ONNX Runtime could not start its provider {provider!r}: {why}",
        "run `pip install 'onnxruntime-gpu[cuda,cudnn]'` and check `nvidia-smi`, or use the provider cpu",
    )


@cache
def _trouble(provider: str) -> str:
    """Return why a provider does not start (no GPU, no driver, a missing library), or "".

    ONNX Runtime itself only logs a line and continues on the processor.
    """
    if provider == "cpu":
        return ""
    with _log_level(_FATAL), contextlib.redirect_stdout(io.StringIO()) as log:
        ort.preload_dlls()  # CUDA's libraries, if installed as packages
        session = ort.InferenceSession(PRODUCT_MODEL, providers=[PROVIDERS[provider]])
    if session.get_providers()[0] == PROVIDERS[provider]:
        return ""
    return next((line for line in log.getvalue().splitlines() if line.strip("* ")), "it logged no reason")


@contextlib.contextmanager
def _log_level(level: int) -> Iterator[None]:
    """Set the level of ONNX Runtime's global log, then its default, since the level before cannot be queried."""
    ort.set_default_logger_severity(level)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The graphs of a bundle run in turns. Threads that still spin for one graph would take cores from the next, whose
    # calls would take up to twice as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


@cache
def _products_are_exact() -> bool:
    """Return whether products of unsigned and signed bytes are exact on this processor.

    On x86 without VNNI their sums overflow 16 bits, unless `x64quantprecision` selects other kernels, which take twice
    the time on processors with VNNI.
    """
    session = ort.InferenceSession(PRODUCT_MODEL, _options(1), providers=["CPUExecutionProvider"])
    (products,) = session.run(None, {"x": np.full((4, 64), 255, np.uint8)})
    return bool((products == 255 * 127 * 64).all())

"""ONNX Runtime sessions as this project opens them."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort

from export.errors import LoraFtError, UsageError
from export.runtime.cpu import allowed_cpus

# MatMulInteger: x uint8 [4,64] times the constant int8 [64,16] that is 127 everywhere, as made by
# tests/export/runtime/test_session.py
_PRODUCT = base64.b64decode(
    "CAo6lgEKLAoBcxIBdyIPQ29uc3RhbnRPZlNoYXBlKhMKBXZhbHVlKgcIARADSgF/oAEEChgKAXgKAXcSAXkiDU1hdE11bEludGVnZXIS"
    "B3Byb2R1Y3QqGQgCEAdCAXNKEEAAAAAAAAAAEAAAAAAAAABaEwoBeBIOCgwIAhIICgIIBAoCCEBiEwoBeRIOCgwIBhIICgIIBAoCCBBCBAoAEBI="
)
_EXACT = "session.x64quantprecision"


PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def choose_provider(wanted: str) -> str:
    """The provider that "auto" means here, or the one that is named.

    Raises:
        UsageError: there is no such provider, or this onnxruntime lacks it.
    """
    here = [name for name, provider in PROVIDERS.items() if provider in ort.get_available_providers()]
    if wanted == "auto":
        return here[-1]
    if wanted not in PROVIDERS:
        raise UsageError(f"there is no provider {wanted!r}", f"one of auto, {', '.join(PROVIDERS)}")
    if wanted not in here:
        raise UsageError(
            f"this onnxruntime {ort.__version__} has no provider {wanted!r}, only {', '.join(here)}",
            "install onnxruntime-gpu in place of onnxruntime, or take another provider",
        )
    return wanted


def open_session(
    model: Path | bytes, threads: int | None = None, provider: str = "cpu"
) -> ort.InferenceSession:  # fmt: skip
    """A session over a file or a serialised model.

    Args:
        model: what to run.
        threads: for one call; by default the cores this process may use (affinity and cgroup quota).
        provider: "cpu" or "cuda".

    Raises:
        LoraFtError: the provider cannot be used, though this onnxruntime has it (a driver or a library is missing).
    """
    options = _options(threads or allowed_cpus())
    if not _products_are_exact():
        options.add_session_config_entry(_EXACT, "1")
    # those the first provider has no kernel for fall to the processor
    session = ort.InferenceSession(
        model, options, providers=list(dict.fromkeys((PROVIDERS[provider], PROVIDERS["cpu"])))
    )
    if session.get_providers()[0] != PROVIDERS[provider]:  # ONNX Runtime only warns, and goes on without it
        raise LoraFtError(
            f"ONNX Runtime could not start its provider {provider!r}",
            "is there a GPU with its driver, CUDA and cuDNN? or take the provider cpu",
        )
    return session


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return options


@cache
def _products_are_exact() -> bool:
    """Whether products of unsigned and signed bytes are exact on this processor.

    On x86 without VNNI their sums overflow 16 bits, unless ONNX Runtime is told to take another way, which on
    processors with VNNI would take twice the time.
    """
    session = ort.InferenceSession(_PRODUCT, _options(1), providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {"x": np.full((4, 64), 255, np.uint8)})
    return bool((made == 255 * 127 * 64).all())

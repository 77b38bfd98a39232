"""ONNX Runtime sessions as this project opens them."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort

from export.runtime.cpu import allowed_cpus

# MatMulInteger: x uint8 [4,64] times the constant int8 [64,16] that is 127 everywhere, as made by
# tests/export/runtime/test_session.py
_PRODUCT = base64.b64decode(
    "CAo6lgEKLAoBcxIBdyIPQ29uc3RhbnRPZlNoYXBlKhMKBXZhbHVlKgcIARADSgF/oAEEChgKAXgKAXcSAXkiDU1hdE11bEludGVnZXIS"
    "B3Byb2R1Y3QqGQgCEAdCAXNKEEAAAAAAAAAAEAAAAAAAAABaEwoBeBIOCgwIAhIICgIIBAoCCEBiEwoBeRIOCgwIBhIICgIIBAoCCBBCBAoAEBI="
)
_EXACT = "session.x64quantprecision"


def open_session(model: Path | bytes, threads: int | None = None) -> ort.InferenceSession:
    """A session over a file or a serialised model.

    Args:
        model: what to run.
        threads: for one call; by default the cores this process may use (affinity and cgroup quota).
    """
    options = _options(threads or allowed_cpus())
    if not _products_are_exact():
        options.add_session_config_entry(_EXACT, "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


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

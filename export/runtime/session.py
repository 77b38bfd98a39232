"""ONNX Runtime sessions as this project opens them."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from export.runtime.cpu import allowed_cpus


def open_session(model: Path | bytes, threads: int | None = None) -> ort.InferenceSession:
    """A session over a file or a serialised model.

    Args:
        model: what to run.
        threads: for one call; by default the cores this process may use (affinity and cgroup quota).
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or allowed_cpus()
    options.log_severity_level = 3
    # without VNNI, products of unsigned and signed bytes overflow 16 bits: take the exact, slower way there
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

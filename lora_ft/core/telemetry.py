"""Opt-out from the telemetry of other libraries, before any of them is imported.

The packages `lora_ft` and `benchmarks` call `opt_out` before anything else. A variable set by the user keeps its
value. Child processes inherit the variables. docs/privacy.md lists what each library would send.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping

OPT_OUT: Mapping[str, str] = {
    # From 1.29 on, importing onnxruntime writes a device id below ~/.cache/Microsoft and starts an uploader. Its
    # disable_telemetry_events() comes too late: only this variable, set before the import, prevents both.
    "ORT_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",  # consoledonottrack.com: huggingface_hub, hf_xet, mlflow and others read it
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers, datasets, gradio, trackio
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # evaluate and datasets count downloads of scripts
    "HF_XET_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
}


def opt_out() -> None:
    """Set each variable of `OPT_OUT` that is not set in the environment."""
    set_by_user = "ORT_DISABLE_TELEMETRY" in os.environ
    for name, value in OPT_OUT.items():
        os.environ.setdefault(name, value)
    if not set_by_user and (onnxruntime := sys.modules.get("onnxruntime")) is not None:
        # It was imported before this package, so its device id is already written, but further events can be stopped.
        with contextlib.suppress(Exception):
            onnxruntime.disable_telemetry_events()

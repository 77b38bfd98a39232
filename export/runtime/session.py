"""ONNX Runtime sessions as this project opens them.

What was measured of its settings, with FLAN-T5-small on two cores (Xeon with VNNI, onnxruntime 1.31):

    threads              all cores of the process: with one, a step takes 1.2 to 1.5 times as long
    spinning             on within a call, as off costs a step 12 to 25 %; off between calls, see `_options`
    arena, memory plan   on, as by default: without either, no difference
    prepacked weights    on, as by default, though each process has its own: without, a step of int8 takes 2.3 times as
                         long, one of 4 bits 40 times
    x64quantprecision    only where sums of byte products overflow, see `_products_are_exact`
    denormals as zero, affinity of threads, dynamic block sizes: no gain, left alone
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.hardware import allowed_cpus
from lora_ft.export.precision import PROVIDERS, parse, supported

# MatMulInteger: x uint8 [4,64] times the constant int8 [64,16] that is 127 everywhere, as made by
# tests/export/runtime/test_session.py
PRODUCT_MODEL = base64.b64decode(
    "CAo6lgEKLAoBcxIBdyIPQ29uc3RhbnRPZlNoYXBlKhMKBXZhbHVlKgcIARADSgF/oAEEChgKAXgKAXcSAXkiDU1hdE11bEludGVnZXIS"
    "B3Byb2R1Y3QqGQgCEAdCAXNKEEAAAAAAAAAAEAAAAAAAAABaEwoBeBIOCgwIAhIICgIIBAoCCEBiEwoBeRIOCgwIBhIICgIIBAoCCBBCBAoAEBI="
)
_EXACT = "session.x64quantprecision"
_WARNING, _ERROR, _FATAL = 2, 3, 4  # ONNX Runtime's levels of logging; the first is its default


def choose_provider(wanted: str, precision: str = "fp32") -> str:
    """The provider that "auto" means here for a bundle of some precision, or the one that is named.

    "auto" is CUDA where that starts and runs the precision, else the processor.

    Raises:
        UsageError: there is no such provider, this onnxruntime lacks it, or it cannot run this precision.
        LoraFtError: the one that is wanted cannot be used, as for `open_session`.
    """
    here = [name for name, provider in PROVIDERS.items() if provider in ort.get_available_providers()]
    able = parse(precision).providers
    if wanted == "auto":
        wanted = next((name for name in reversed(here) if name in able and not _trouble(name)), (*able, *here)[0])
    if wanted not in PROVIDERS:
        raise UsageError(f"the provider {wanted!r} is unknown", f"Use auto or one of {', '.join(PROVIDERS)}.")
    if wanted not in able:
        raise UsageError(
            f"precision {precision} is not supported on {wanted} (supported: {', '.join(supported(wanted))})",
            "Use another provider, or export the model again in another precision.",
        )
    if wanted not in here:
        raise UsageError(
            f"this onnxruntime {ort.__version__} lacks the provider {wanted!r} (it has {', '.join(here)})",
            "Install onnxruntime-gpu instead of onnxruntime, or use another provider.",
        )
    _require(wanted)
    return wanted


def open_session(model: Path | bytes, threads: int | None = None, provider: str = "cpu") -> ort.InferenceSession:
    """A session over a file or a serialised model.

    Args:
        model: what to run.
        threads: for one call; by default the cores this process may use (affinity and cgroup quota).
        provider: "cpu" or "cuda".

    Raises:
        LoraFtError: the provider cannot be used, though this onnxruntime has it (a driver or a library is missing).
    """
    _require(provider)
    options = _options(threads or allowed_cpus())
    if not _products_are_exact():
        options.add_session_config_entry(_EXACT, "1")
    # those the first provider has no kernel for fall to the processor
    exactly = [{"use_tf32": "0"}, {}] if provider == "cuda" else [{}]  # fp32 means fp32
    providers = list(dict.fromkeys((PROVIDERS[provider], PROVIDERS["cpu"])))
    # CUDA's ScatterND warns, for each of a graph's, of what would be wrong if two places were the same
    with _log_level(_ERROR) if provider == "cuda" else contextlib.nullcontext():
        session = ort.InferenceSession(model, options, providers=providers, provider_options=exactly)
    if session.get_providers()[0] != PROVIDERS[provider]:  # ONNX Runtime only warns, and goes on without it
        raise _not_started(provider, "it did before; is the GPU's memory full?")
    return session


def ort_value(array: np.ndarray, device: str = "cpu") -> ort.OrtValue:
    """Of an array, on the processor in the array's own memory, which it keeps alive."""
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), device)


def _require(provider: str) -> None:
    """Raise LoraFtError unless this machine can use the provider."""
    if trouble := _trouble(provider):
        raise _not_started(provider, trouble)


def _not_started(provider: str, why: str) -> LoraFtError:
    return LoraFtError(
        f"ONNX Runtime could not start its provider {provider!r}: {why}",
        "pip install 'onnxruntime-gpu[cuda,cudnn]' and see what nvidia-smi says, or take the provider cpu",
    )


@cache
def _trouble(provider: str) -> str:
    """Why a provider that this onnxruntime has cannot be used (no GPU, no driver, a library is missing), or "".

    ONNX Runtime itself logs the place in its source and goes on with the processor.
    """
    if provider == "cpu":
        return ""
    with _log_level(_FATAL), contextlib.redirect_stdout(io.StringIO()) as said:
        ort.preload_dlls()  # CUDA's, where they were installed as packages
        session = ort.InferenceSession(PRODUCT_MODEL, providers=[PROVIDERS[provider]])
    if session.get_providers()[0] == PROVIDERS[provider]:
        return ""
    return next((line for line in said.getvalue().splitlines() if line.strip("* ")), "it does not say why")


@contextlib.contextmanager
def _log_level(level: int) -> Iterator[None]:
    """What ONNX Runtime says outside of a session's own log; it does not tell which level there was before."""
    ort.set_default_logger_severity(level)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # a bundle's graphs run in turns: threads of one that still spin for work would take the cores from the next, whose
    # calls then last up to twice as long
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


@cache
def _products_are_exact() -> bool:
    """Whether products of unsigned and signed bytes are exact on this processor.

    On x86 without VNNI their sums overflow 16 bits, unless ONNX Runtime is told to take another way, which on
    processors with VNNI would take twice the time.
    """
    session = ort.InferenceSession(PRODUCT_MODEL, _options(1), providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {"x": np.full((4, 64), 255, np.uint8)})
    return bool((made == 255 * 127 * 64).all())

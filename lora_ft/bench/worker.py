"""The process of one engine. It reads requests as lines of JSON from stdin and writes each reply to stdout.

    python -P worker.py KIND PRECISION CHECKPOINT PREPARED THREADS PROVIDER

KIND is a key of `lora_ft.bench.engines.KINDS`, or a Python file. PREPARED is the folder that the engine loads; peers
convert the checkpoint into it. This module imports only the packages of its engine, since lora-ft is not installed in
the environment of a peer.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

BEAMS, TOP_K = 4, 50
DEVICE_STEPS = 8  # steps of `onnx-device` between two looks at the tokens


class Loaded(Protocol):
    """A loaded engine."""

    def generate(self, ids: np.ndarray, mask: np.ndarray, new: int, least: int, decoding: str, room: int) -> np.ndarray:
        """Return tokens [b, n <= new] for prompts [b, s], without </s> before `least`; `room` is the cache size."""

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> Any:
        """Run the encoder alone. Engines that cannot run it separately lack this method."""


def main(kind: str, precision: str, checkpoint: str, prepared: str, threads: str, provider: str) -> None:
    """Serve requests until stdin ends."""
    end_with_parent()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the engine's own output must not mix with replies
    hide_torchvision()
    engine = Process(kind, precision, Path(checkpoint), Path(prepared), int(threads), provider)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(engine, request.pop("call"))(**request)
        except Exception as error:
            text = next(iter(str(error).strip().splitlines()), "")
            reply = {"error": f"{type(error).__name__}: {text}"}
        print(json.dumps(reply), file=replies)


def end_with_parent() -> None:
    """Let the system end this process with its parent. A process that is stopped does not see the end of stdin."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG


def hide_torchvision() -> None:
    """Make transformers believe that torchvision is missing.

    No text model needs it, and a copy built for another torch makes importing transformers fail.
    """
    sys.modules["torchvision"] = None  # type: ignore[assignment]


class Process:
    """The calls that a worker answers, one method for each."""

    def __init__(
        self, kind: str, precision: str, checkpoint: Path, prepared: Path, threads: int, provider: str
    ) -> None:
        self._kind, self._precision, self._threads, self._provider = kind, precision, threads, provider
        self._checkpoint, self._prepared = checkpoint, prepared
        self._ends = _ends(checkpoint)
        self._engine: Any = None

    def imports(self) -> dict[str, float]:
        """Import the engine's packages."""
        began = time.perf_counter()
        for name in PACKAGES.get(self._kind, ()):
            module, _, attribute = name.partition(":")
            getattr(importlib.import_module(module), attribute)  # some packages import submodules on first access
        return {"seconds": time.perf_counter() - began}

    def convert(self) -> dict[str, float]:
        """Convert the checkpoint to the engine's format."""
        began = time.perf_counter()
        partial = self._prepared.with_name(f"{self._prepared.name}.partial-{os.getpid()}")
        CONVERT[self._kind](self._checkpoint, partial, self._precision)
        partial.rename(self._prepared)
        return {"seconds": time.perf_counter() - began}

    def load(self) -> dict[str, Any]:
        """Load the model. Return the time, and what takes steps and encodes where an engine has several ways."""
        began = time.perf_counter()
        if self._kind in LOAD:
            self._engine = LOAD[self._kind](self._prepared, self._precision, self._threads, self._provider)
        else:
            self._engine = _own(Path(self._kind), self._checkpoint, self._threads)
        ways = {name: getattr(self._engine, name, None) for name in ("steps_by", "encoder_by")}
        return {"seconds": time.perf_counter() - began, **ways}

    def generate(self, ids: list[list[int]], new: int, least: int, decoding: str, room: int) -> dict[str, Any]:
        """Return wall time, CPU time and the tokens up to </s> of prompts of any length."""
        rows, mask = _padded(ids)
        busy, began = time.process_time(), time.perf_counter()
        tokens = self._engine.generate(rows, mask, new, least, decoding, room)
        seconds, cpu = time.perf_counter() - began, time.process_time() - busy
        return {"seconds": seconds, "cpu": cpu, "tokens": [_trimmed(row, self._ends) for row in tokens.tolist()]}

    def encode(self, ids: list[list[int]]) -> dict[str, float | None]:
        """Return the time of the encoder alone, in seconds, or None."""
        if not hasattr(self._engine, "encode"):
            return {"seconds": None}
        rows, mask = _padded(ids)
        began = time.perf_counter()
        self._engine.encode(rows, mask)
        return {"seconds": time.perf_counter() - began}


def _padded(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, ids))
    rows = np.array([row + [0] * (longest - len(row)) for row in ids], np.int64)
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in ids], np.int64)
    return rows, mask


def _ends(checkpoint: Path) -> list[int]:
    """Return the tokens that end an answer of the checkpoint."""
    for name in ("generation_config.json", "config.json"):
        path = checkpoint / name
        ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if ends is not None:
            return ends if isinstance(ends, list) else [ends]
    return [1]


def _trimmed(row: list[int], ends: list[int]) -> list[int]:
    """Return an answer without </s> and without padding, which is -1 in some engines."""
    return row[: next((i for i, token in enumerate(row) if token < 0 or token in ends), len(row))]


class _Onnx:
    def __init__(self, prepared: Path, precision: str, threads: int, provider: str, device_steps: int = 0) -> None:
        from lora_ft.export.runtime import Generator

        self._generator = Generator.load(prepared, threads=threads, provider=provider, device_steps=device_steps)
        self.steps_by, self.encoder_by = self._generator.step_engine, self._generator.encoder_engine

    def generate(self, ids: np.ndarray, mask: np.ndarray, new: int, least: int, decoding: str, room: int) -> np.ndarray:
        limits: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": least}
        lookup = decoding == "lookup"
        return self._generator.generate_ids(ids, mask, **limits, prompt_lookup=lookup, **_options(decoding), seed=0)

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> Any:
        return self._generator.model.encode(ids, mask)


class _Single:
    def __init__(self, prepared: Path, precision: str, threads: int, provider: str) -> None:
        from lora_ft.export.layouts import single
        from lora_ft.export.runtime.session import open_session

        self._session = open_session(prepared / single.MODEL, threads, provider)
        self._feed = single.greedy_feed

    def generate(self, ids: np.ndarray, mask: np.ndarray, new: int, least: int, decoding: str, room: int) -> np.ndarray:
        feed = self._feed(ids, mask, least, new)
        if decoding == "sample":
            uniform = np.random.default_rng(0).random((len(ids), new), np.float32)
            feed |= {"top_k": np.array(TOP_K), "temperature": np.array(1, np.float32), "uniform": uniform}
        return np.asarray(self._session.run(None, feed)[0])


class _Torch:
    """Engine on transformers' `generate`, for its own models and for packages that implement its interface."""

    def __init__(self, model: Any, compiled: bool = False) -> None:
        self._model, self._compiled = model, compiled

    @classmethod
    def load(cls, prepared: Path, precision: str, threads: int, provider: str) -> _Torch:
        import torch

        from lora_ft.models.bases import load_model

        torch.set_num_threads(threads)
        model = load_model(prepared).to(torch.bfloat16 if precision == "bf16" else torch.float32)
        return cls(model.to("cuda") if provider == "cuda" else model)

    @classmethod
    def compiled(cls, prepared: Path, precision: str, threads: int, provider: str) -> _Torch:
        loaded = cls.load(prepared, precision, threads, provider)
        loaded._compiled = True
        return loaded

    def generate(self, ids: np.ndarray, mask: np.ndarray, new: int, least: int, decoding: str, room: int) -> np.ndarray:
        import torch

        torch.manual_seed(0)
        limits = self._in_static_cache(new, room) if self._compiled else {"max_new_tokens": new}
        with torch.inference_mode():
            tokens = self._model.generate(
                **self._inputs(ids, mask), **limits, min_new_tokens=least, **_options(decoding)
            )
        return np.asarray(tokens[:, 1:].cpu())

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> Any:
        import torch

        with torch.inference_mode():
            return self._model.get_encoder()(**self._inputs(ids, mask)).last_hidden_state.float().sum().item()

    def _inputs(self, ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        import torch

        device = self._model.device
        return {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}

    def _in_static_cache(self, new: int, room: int) -> dict[str, Any]:
        """Return options for a static cache of `room` tokens, since another size would compile the model again."""
        from transformers import CompileConfig, StoppingCriteria

        class Enough(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                import torch

                return torch.full((len(input_ids),), input_ids.shape[1] > new, device=input_ids.device)

        config = CompileConfig(fullgraph=False)
        config._compile_all_devices = True  # by default, transformers compiles for GPUs only
        return {
            "max_new_tokens": room,
            "stopping_criteria": [Enough()],
            "cache_implementation": "static",
            "compile_config": config,
        }


def _options(decoding: str) -> dict[str, Any]:
    """Return the options of a decoding, by transformers' names."""
    beams = {"num_beams": BEAMS, "early_stopping": True} if decoding == "beams" else {"num_beams": 1}
    return beams | ({"do_sample": True, "top_k": TOP_K} if decoding == "sample" else {"do_sample": False})


def _openvino(prepared: Path, precision: str, threads: int, provider: str) -> _Torch:
    from optimum.intel import OVModelForSeq2SeqLM

    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": str(threads),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return _Torch(OVModelForSeq2SeqLM.from_pretrained(prepared, ov_config=settings))


def _convert_optimum(checkpoint: Path, prepared: Path, precision: str) -> None:
    import shutil

    from optimum.onnxruntime import AutoQuantizationConfig, ORTModelForSeq2SeqLM, ORTQuantizer

    # optimum's merged decoder assumes d_kv == d_model / heads, which is wrong for FLAN-T5-small
    plain = prepared if precision == "fp32" else prepared.with_name(f"{prepared.name}.fp32")
    ORTModelForSeq2SeqLM.from_pretrained(checkpoint, export=True, use_merged=False).save_pretrained(plain)
    if precision == "fp32":
        return
    for file in sorted(plain.glob("*.onnx")):
        exact = _sensitive(file) if precision == "int8-mixed" else []
        config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True, nodes_to_exclude=exact)
        ORTQuantizer.from_pretrained(plain, file_name=file.name).quantize(config, save_dir=prepared, file_suffix="")
    for file in plain.glob("*.json"):
        (prepared / file.name).write_bytes(file.read_bytes())
    shutil.rmtree(plain)


def _sensitive(file: Path) -> list[str]:
    """Return the matrix products that `int8-mixed` keeps in float32: `wo` of each feed-forward layer, and the head.

    Activations before `wo` have outliers, so transformers keeps it in float32, too. Without this, Optimum's int8 loses
    6.9 ROUGE-1 on DialogSum (`benchmarks/results/peers.json`), and many answers repeat until the limit.
    """
    import onnx

    nodes = onnx.load(file, load_external_data=False).graph.node
    products = [node.name for node in nodes if node.op_type == "MatMul"]
    return [name for name in products if "DenseReluDense/wo/" in name or "/lm_head/" in name]


def _optimum(prepared: Path, precision: str, threads: int, provider: str) -> _Torch:
    import onnxruntime as ort
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return _Torch(ORTModelForSeq2SeqLM.from_pretrained(prepared, use_merged=False, session_options=options))


class _Plain:
    """A user's engine."""

    def __init__(self, function: Callable[..., np.ndarray]) -> None:
        self._function = function

    def generate(self, ids: np.ndarray, mask: np.ndarray, new: int, least: int, decoding: str, room: int) -> np.ndarray:
        return self._function(ids, mask, new, least)


def _own(file: Path, checkpoint: Path, threads: int) -> _Plain:
    return _Plain(_module(file).load(checkpoint, threads))


def _module(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _call(name: str, function: str, *arguments: Any) -> Any:
    """Call a function of a file in `peers/`, whose imports need the peer's environment."""
    return getattr(_module(Path(__file__).with_name("peers") / f"{name}.py"), function)(*arguments)


PACKAGES = {
    "onnx": ("lora_ft.export.runtime:Generator",),
    "onnx-device": ("lora_ft.export.runtime:Generator",),
    "single": ("onnxruntime:InferenceSession", "lora_ft.export.layouts.single:greedy_feed"),
    "torch": ("transformers:T5ForConditionalGeneration", "lora_ft.models.bases:load_model"),
    "torch-compile": ("transformers:T5ForConditionalGeneration", "lora_ft.models.bases:load_model"),
    "optimum": ("optimum.onnxruntime:ORTModelForSeq2SeqLM",),
    "openvino": ("optimum.intel:OVModelForSeq2SeqLM",),
    "openvino-requests": ("openvino:Core",),
    "ctranslate2": ("ctranslate2:Translator", "tokenizers:Tokenizer"),
    "beam-search": ("onnxruntime:InferenceSession",),
    "mobius": ("onnxruntime:InferenceSession",),
}
FILES = {
    "openvino-requests": "openvino_requests",
    "ctranslate2": "ctranslate2",
    "beam-search": "beam_search",
    "mobius": "mobius",
}
CONVERT: dict[str, Callable[[Path, Path, str], None]] = {
    "optimum": _convert_optimum,
    "openvino": partial(_call, "openvino_requests", "convert"),
    **{kind: partial(_call, name, "convert") for kind, name in FILES.items()},
}
LOAD: dict[str, Callable[[Path, str, int, str], Any]] = {
    "onnx": _Onnx,
    "onnx-device": partial(_Onnx, device_steps=DEVICE_STEPS),
    "single": _Single,
    "torch": _Torch.load,
    "torch-compile": _Torch.compiled,
    "optimum": _optimum,
    "openvino": _openvino,
    **{kind: partial(_call, name, "load") for kind, name in FILES.items()},
}

if __name__ == "__main__":
    main(*sys.argv[1:])

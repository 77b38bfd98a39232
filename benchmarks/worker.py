"""One engine in a process of its own: answers each request line with one line, the seconds it took.

python -m benchmarks.worker ENGINE FOLDER THREADS

Engines: torch (a checkpoint), onnx (a bundle), single (the layout of one file), and peers, which need packages of their
own: openvino-fp32, -bf16, -int8, -int4 (optimum-intel) and ctranslate2-fp32, -int8, made from a checkpoint and kept
beside it. A peer's environment needs nothing of this project's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

# (sources [b, s], how many tokens to make of each) -> tokens [b, n]
Generate = Callable[[np.ndarray, int], np.ndarray]


def main(engine: str, model: str, threads: str) -> None:
    """Serve requests {"batch", "source", "new"} until stdin ends. Sources are random tokens, the same for all."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what an engine prints is no answer
    generate = ENGINES[engine](Path(model), int(threads))
    print(json.dumps({"ready": engine}), file=replies)
    for line in sys.stdin:
        request = json.loads(line)
        shape = (request["batch"], request["source"])
        ids = np.random.default_rng(0).integers(3, 30000, shape).astype(np.int64)
        began = time.perf_counter()
        made = generate(ids, request["new"])
        seconds = time.perf_counter() - began
        if made.shape != (request["batch"], request["new"]):
            raise SystemExit(f"{engine} made {made.shape} tokens, not {request['batch']} x {request['new']}")
        print(json.dumps({"seconds": seconds}), file=replies)


def _torch(folder: Path, threads: int) -> Generate:
    import torch

    from lora_ft.bases import load_model

    torch.set_num_threads(threads)
    return _by_transformers(load_model(folder))


def _by_transformers(model) -> Generate:  # type: ignore[no-untyped-def]
    """What has transformers' `generate`: its own models, and those of optimum."""
    import torch

    def generate(ids: np.ndarray, new: int) -> np.ndarray:
        source = torch.from_numpy(ids)
        with torch.inference_mode():
            out = model.generate(
                input_ids=source, attention_mask=torch.ones_like(source), max_new_tokens=new, min_new_tokens=new,
                do_sample=False, num_beams=1,
            )  # fmt: skip
        return np.asarray(out[:, 1:])

    return generate


def _onnx(folder: Path, threads: int) -> Generate:
    from export.runtime import Generator

    generator = Generator.load(folder, threads=threads)
    return lambda ids, new: generator.generate_ids(ids, np.ones_like(ids), max_new_tokens=new, min_new_tokens=new)


def _single(folder: Path, threads: int) -> Generate:
    from export.layouts.single import MODEL, greedy_feed
    from export.runtime.session import open_session

    session = open_session(folder / MODEL, threads)

    def generate(ids: np.ndarray, new: int) -> np.ndarray:
        (tokens,) = session.run(None, greedy_feed(ids, np.ones_like(ids), new, new))
        return np.asarray(tokens)

    return generate


def _openvino(precision: str, checkpoint: Path, threads: int) -> Generate:
    from optimum.intel import OVModelForSeq2SeqLM, OVWeightQuantizationConfig

    folder = checkpoint.with_name(f"{checkpoint.name}-openvino-{precision}")
    bits = {"int8": 8, "int4": 4}.get(precision)
    hint = "bf16" if precision == "bf16" else "f32"
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": str(threads),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if not folder.is_dir():
        quantization = (
            OVWeightQuantizationConfig(bits=bits, sym=bits == 4, group_size=64 if bits == 4 else -1) if bits else None
        )
        made = OVModelForSeq2SeqLM.from_pretrained(
            checkpoint, export=True, compile=False, load_in_8bit=False, quantization_config=quantization
        )
        made.save_pretrained(folder)
    return _by_transformers(OVModelForSeq2SeqLM.from_pretrained(folder, ov_config=settings))


def _ctranslate2(precision: str, checkpoint: Path, threads: int) -> Generate:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer

    folder = checkpoint.with_name(f"{checkpoint.name}-ctranslate2")
    if not folder.is_dir():
        TransformersConverter(str(checkpoint)).convert(str(folder))
    kind = {"fp32": "float32"}.get(precision, precision)
    translator = ctranslate2.Translator(str(folder), compute_type=kind, intra_threads=threads)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

    def generate(ids: np.ndarray, new: int) -> np.ndarray:
        texts = [[tokenizer.id_to_token(int(i)) for i in row] for row in ids]
        made = translator.translate_batch(
            texts, beam_size=1, min_decoding_length=new, max_decoding_length=new, max_input_length=0
        )
        return np.array([[tokenizer.token_to_id(token) for token in one.hypotheses[0]] for one in made])

    return generate


ENGINES: dict[str, Callable[[Path, int], Generate]] = {
    "torch": _torch,
    "onnx": _onnx,
    "single": _single,
    **{f"openvino-{precision}": partial(_openvino, precision) for precision in ("fp32", "bf16", "int8", "int4")},
    **{f"ctranslate2-{precision}": partial(_ctranslate2, precision) for precision in ("fp32", "int8")},
}

if __name__ == "__main__":
    main(*sys.argv[1:])

"""One engine in a process of its own: answers each request line with one line, the seconds it took.

python -m benchmarks.worker torch CHECKPOINT
python -m benchmarks.worker onnx BUNDLE
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from export.runtime.cpu import allowed_cpus


def main(engine: str, model: str) -> None:
    """Serve requests {"batch", "source", "new"} until stdin ends. Sources are random tokens, the same for all."""
    generate = ENGINES[engine](Path(model))
    print(json.dumps({"ready": engine}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        shape = (request["batch"], request["source"])
        ids = np.random.default_rng(0).integers(3, 30000, shape).astype(np.int64)
        began = time.perf_counter()
        made = generate(ids, request["new"])
        seconds = time.perf_counter() - began
        if made.shape != (request["batch"], request["new"]):
            raise SystemExit(f"{engine} made {made.shape} tokens, not {request['batch']} x {request['new']}")
        print(json.dumps({"seconds": seconds}), flush=True)


def _torch(folder: Path):  # type: ignore[no-untyped-def]
    import torch

    from lora_ft.bases import load_model

    torch.set_num_threads(allowed_cpus())
    model = load_model(folder)

    def generate(ids: np.ndarray, new: int) -> np.ndarray:
        source = torch.from_numpy(ids)
        with torch.inference_mode():
            out = model.generate(
                input_ids=source, attention_mask=torch.ones_like(source), max_new_tokens=new, min_new_tokens=new,
                do_sample=False, num_beams=1,
            )  # fmt: skip
        return out[:, 1:].numpy()

    return generate


def _onnx(folder: Path):  # type: ignore[no-untyped-def]
    from export.runtime import Generator

    generator = Generator.load(folder)

    def generate(ids: np.ndarray, new: int) -> np.ndarray:
        return generator.generate_ids(ids, np.ones_like(ids), max_new_tokens=new, min_new_tokens=new)

    return generate


ENGINES = {"torch": _torch, "onnx": _onnx}

if __name__ == "__main__":
    main(*sys.argv[1:])

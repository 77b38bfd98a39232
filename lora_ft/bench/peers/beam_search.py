"""ONNX Runtime's own T5: `onnxruntime.transformers.convert_generation`, a graph of one BeamSearch operator.

Greedy search is a search with one beam, since its GreedySearch operator runs GPT-2 alone. The operator makes the mask
from the padding (token 0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

MODEL = "model.onnx"
BEAMS = 4


def convert(checkpoint: Path, prepared: Path, precision: str) -> None:
    """Write the graph without ONNX Runtime's fusions for T5, whose RelativePositionBias runs on CUDA alone."""
    from onnxruntime.transformers import convert_generation

    prepared.mkdir(parents=True)
    encoder, decoder = convert_generation.export_t5_onnx_models(str(checkpoint), "", str(prepared), optimize_onnx=False)
    if precision == "int8":
        _quantize(encoder)
        _quantize(decoder)
    graphs = ["--encoder_decoder_init_onnx", encoder, "--decoder_onnx", decoder, "--output", str(prepared / MODEL)]
    arguments = convert_generation.parse_arguments(["--model_type", "t5", "-m", str(checkpoint), *graphs])
    convert_generation.convert_generation_model(arguments)
    for graph in (encoder, decoder):
        Path(graph).unlink()


def _quantize(graph: str) -> None:
    """Quantize a graph to 8 bits, but `wo` and the head, without which texts change (`optimum/int8` in `worker.py`)."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    nodes = onnx.load(graph).graph.node
    exact = [node.name for node in nodes if "DenseReluDense/wo/" in node.name or "lm_head" in node.name]
    quantize_dynamic(graph, graph, per_channel=True, nodes_to_exclude=exact)


class BeamSearch:
    """One session that returns whole answers."""

    def __init__(self, model: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(model, options)

    def generate(self, ids: np.ndarray, mask: np.ndarray, new: int, least: int, decoding: str, room: int) -> np.ndarray:
        """Return tokens [b, new] up to </s>. Lengths of the operator count the start token."""
        lengths = {"max_length": new + 1, "min_length": least + 1 if least else 0}
        counts = {"num_beams": BEAMS if decoding == "beams" else 1, "num_return_sequences": 1}
        feed = {name: np.array([value], np.int32) for name, value in (lengths | counts).items()}
        penalties = {name: np.ones(1, np.float32) for name in ("length_penalty", "repetition_penalty")}
        answers = self._session.run(None, {"input_ids": ids.astype(np.int32)} | feed | penalties)[0]
        return np.asarray(answers[:, 0, 1:], np.int64)


def load(prepared: Path, precision: str, threads: int, provider: str) -> BeamSearch:
    """Return the engine."""
    return BeamSearch(prepared / MODEL, threads)

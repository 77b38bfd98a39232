"""The encoder of a bundle in the package lora-ft-kernels, in place of the graph `encoder`.

The kernel reads the weights of that graph, and returns the keys and values that the decoder attends to, in fp16. It
computes the tokens of all sources without their padding, so a short source beside a long one costs only its own tokens.
Its memory grows with the tokens, and not with the square of a source's length. See `lora_ft.export.runtime.kernel`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.runtime.cache import Source
from lora_ft.export.runtime.forks import begin_again_in_children
from lora_ft.export.runtime.graph_weights import GraphWeights
from lora_ft.export.runtime.kernel import INSTRUCTIONS, embedding, matrix, package_for, products, sizes_of
from lora_ft.export.runtime.session import on_lines, ort_value


class EncoderKernel:
    """The kernel of one bundle's encoder.

    Args:
        folder: Folder of the bundle.
        precision: Precision of the bundle.
        threads: Most threads of a call.

    Attributes:
        instructions: Processor instructions that it uses.
        vocabulary: Number of tokens.

    Raises:
        ValueError: The package, the processor, the precision or the sizes do not fit.
    """

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        package = package_for(precision, "encoder")
        a = Architecture.read(json.loads((folder / "config.json").read_text(encoding="utf-8")), folder)
        sizes = sizes_of(package, a, "encoder")
        self._kernel = package.Kernel(sizes, _weights(package, folder, a), threads, INSTRUCTIONS)
        self.instructions: str = self._kernel.instructions
        self.vocabulary = a.vocabulary
        self._shape = 2 * a.decoder_layers, a.heads, a.d_kv
        begin_again_in_children(self)

    def encode(self, ids: np.ndarray, mask: np.ndarray, threads: int) -> Source:
        """Return the encoded sources, with keys and values in fp16 and zeros as those of the padding.

        Args:
            ids, mask: Tokens and their mask, int64 [b, s].
            threads: Threads of the call.
        """
        count, heads, d_kv = self._shape
        cross = on_lines(np.empty, (count, len(ids), heads, ids.shape[1], d_kv), np.float16)
        self._kernel.encode(ids, mask, cross, threads)
        return Source(len(ids), [ort_value(each) for each in (mask, *cross)])

    def begin_again(self) -> None:
        """Start threads in a forked child."""
        self._kernel.begin_again()


def _weights(package: Any, folder: Path, a: Architecture) -> Any:
    """Return the weights of the graph as the package takes them."""
    graph = GraphWeights(folder / "encoder.onnx")
    inputs = iter(products(graph))
    counts = [(3, a.d_model), (1, a.width), (2 if a.gated else 1, a.d_model), (1, a.d_ff)] * a.layers
    counts.append((2 * a.decoder_layers, a.d_model))  # products that share their input, and its size
    tables = [graph.array(name, np.float32).reshape(-1, a.heads) for name in a.family.biases(a, "encoder")]
    return package.Weights(
        matrices=[matrix(package, graph, [next(inputs) for _ in range(count)], size) for count, size in counts],
        norms=[graph.array(name, np.float32) for name in a.family.norms(a, "encoder")],
        bias=[table[::-1].T for table in tables],  # rows are offsets of a key from the query
        ends=(),
        **embedding(graph, a),
    )

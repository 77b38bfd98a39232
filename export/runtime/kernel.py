"""The decoder of a bundle in the package lora-ft-kernels, in place of the graphs `step`, `decoder` and `draft`.

The kernel reads the weights of the graph `step`, and keeps keys and values in the same form, except those of sources:
these are rounded to fp16, since each step reads all of them. It computes in the same formats: integers are exact,
floats are added in another order. So its logits differ by what the rounded keys and values change, and by more where
that moves a rounded input to the next integer. It is chosen if the processor and the sizes fit, and if its logits of
the bundle's probe are near the graphs'.

A row has equal bits whatever runs with it, in every format, so drafts are lossless in 4 bits too.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.families import Stack
from lora_ft.export.precision import FORMATS, parse
from lora_ft.export.runtime.cache import Cache, Source, Step
from lora_ft.export.runtime.forks import begin_again_in_children
from lora_ft.export.runtime.graph_weights import GraphWeights
from lora_ft.export.runtime.io_binding import DeviceBuffer
from lora_ft.export.runtime.manifest import ADAPTED
from lora_ft.export.runtime.session import on_lines

KERNEL = "kernel"  # its name among the graphs
PACKAGE = "lora_ft_kernels"
_INTERFACE = 3  # of the package
VARIABLE = "LORA_FT_KERNELS"  # 0 switches the kernel off
# Formats of a decoder's layers that the kernel computes, each with products of bytes.
_FORMATS = {name for name, entry in FORMATS.items() if entry.bits <= 8}
# The kernel was measured to win with these. It runs without them, but ONNX Runtime's products take less time there.
INSTRUCTIONS = "avx512"
_BY_CHANNEL, _BY_GROUP = "MatMulIntegerToFloat", "MatMulNBits"
_BY_ROW = "float.1"  # input scale of products whose inputs have a scale per row
_GROUPED = re.compile(r"\.w([48])g(\d+)$")
_FORMAT = re.compile(r"\.(int8|w[48]g\d+)$")
_ADAPTER = "adapter."  # prefix of the graph inputs of a bank
_BY_ADAPTER = "QLinearMatMul"  # the product with an adapter's A


class StepKernel:
    """The kernel of one bundle.

    Args:
        folder: Folder of the bundle.
        precision: Precision of the bundle.
        threads: Most threads of a call.
        inputs: Names of the adapter inputs of a bank's graph of steps.

    Attributes:
        instructions: Processor instructions that it uses.
        vocabulary: Number of tokens.

    Raises:
        ValueError: The package, the processor, the precision, the sizes or the adapters do not fit.
    """

    def __init__(self, folder: Path, precision: str, threads: int, inputs: Sequence[str] = ()) -> None:
        self._package = package_for(precision, "decoder", "head")
        a = Architecture.read(json.loads((folder / "config.json").read_text(encoding="utf-8")), folder)
        sizes = sizes_of(self._package, a, "decoder")
        graph = GraphWeights(folder / "step.onnx")
        weights = self._weights(graph, a)
        self._slots = _slots(graph, GraphWeights(folder / f"{ADAPTED}step.onnx"), inputs) if inputs else {}
        self._kernel = self._package.Kernel(sizes, weights, threads, INSTRUCTIONS)
        self.instructions: str = self._kernel.instructions
        self.vocabulary = a.vocabulary
        begin_again_in_children(self)

    def _weights(self, graph: GraphWeights, a: Architecture) -> Any:
        """Return the weights of the graph as the package takes them."""
        tables = [graph.array(name, np.float32).reshape(-1, a.heads) for name in a.family.biases(a, "decoder")]
        wide = [a.d_model, a.width, a.d_model, a.width, a.d_model, a.d_ff] * a.decoder_layers
        return self._package.Weights(
            matrices=[
                matrix(self._package, graph, [inputs], size)
                for inputs, size in zip(products(graph), [*wide, a.d_model], strict=True)
            ],
            norms=[graph.array(name, np.float32) for name in a.family.norms(a, "decoder")],
            bias=[
                table[a.max_distance :: -1].T for table in tables
            ],  # rows are offsets: 0 in the middle, earlier above
            ends=a.special.ends,
            **embedding(graph, a),
        )

    def step(self, threads: int, source: Source, cache: Cache, tokens: np.ndarray, output: str) -> Step:
        """Return a step for tokens of this shape [b, q], like those that are bound to the graphs.

        Args:
            threads: Threads of a call.
            source, cache: Memory of the keys and values. The caller keeps it alive.
            tokens: Example of the tokens.
            output: "next" or "logits".
        """
        logits = None if output == "next" else np.empty((*tokens.shape, self.vocabulary), np.float32)
        mask, *cross = source.values
        memory = self._package.Memory(
            mask=mask.data_ptr(),
            cross=[value.data_ptr() for value in cross],
            past=[value.data_ptr() for value in cache.values],
            sources=source.rows,
            length=mask.shape()[1],
            room=cache.room,
            adapters=source.adapters.packed(self._adapter) if source.adapters else (),
        )
        bound = self._package.Step(self._kernel, memory, tokens.shape, len(cache.lengths), threads, logits)
        return Step(bound, DeviceBuffer.of(bound.next if logits is None else logits, "cpu"))

    def adopt(self, source: Source) -> Source:
        """Return a source with keys and values in fp16."""
        if source.is_rounded:
            return source
        return source.changed(lambda array: self._package.rounded(array, on_lines(np.empty, array.shape, np.float16)))

    def _adapter(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """Return an adapter as the package takes it, given its arrays by graph input."""
        changes = {}
        for name, (number, step) in self._slots.items():
            a, b, a_scale, b_scale = (arrays[f"{name}.{key}"] for key in ("A", "B", "A.scale", "B.scale"))
            if b.any():  # else the adapter leaves these layers
                parts = b.reshape(-1, *b.shape[-2:])
                changes[number] = self._package.LowRank(a, a_scale.reshape(-1), parts, b_scale.reshape(-1), step)
        return self._package.Adapter(self._kernel.shapes, changes)

    def begin_again(self) -> None:
        """Start threads in a forked child."""
        self._kernel.begin_again()


def _slots(graph: GraphWeights, adapted: GraphWeights, inputs: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Return (number of the product, scale of its input or 0 for one per row) of each adapter slot, by its prefix.

    Args:
        graph: Graph of steps without adapters.
        adapted: Graph of steps with adapters.
        inputs: Names of its adapter inputs.

    Raises:
        ValueError: Adapters are not bytes, or change other layers than the kernel's.
    """
    numbers = {_ADAPTER + _FORMAT.sub("", names[1]): i for i, names in enumerate(products(graph)[:-1])}
    slots = {}
    for node in adapted.nodes:
        name = node.inputs[3].removesuffix(".A") if node.operator == _BY_ADAPTER else ""
        if name in numbers:
            step = 0.0 if node.inputs[1] == _BY_ROW else float(adapted.array(node.inputs[1], np.float32)[0])
            slots[name] = numbers[name], step
    if set(inputs) != {f"{name}.{key}" for name in slots for key in ("A", "B", "A.scale", "B.scale")}:
        raise ValueError("adapters of these layers have no kernel")
    return slots


def package_for(precision: str, *kinds: str) -> Any:
    """Return the package, for layers of these kinds.

    Raises:
        ValueError: The precision has no kernel, the package is not installed or is of another version, or
            `LORA_FT_KERNELS` is 0.
    """
    formats = parse(precision)
    if os.environ.get(VARIABLE) == "0":
        raise ValueError(f"{VARIABLE} is 0")
    if not {getattr(formats, kind) for kind in kinds} <= _FORMATS or formats.embedding != "int8":
        raise ValueError(f"the precision {precision} has no kernel")
    try:
        package = importlib.import_module(PACKAGE)
    except (ImportError, OSError) as error:
        raise ValueError(f"lora-ft-kernels is not installed ({error})") from error
    if (number := getattr(package, "INTERFACE", 1)) != _INTERFACE:
        raise ValueError(f"lora-ft-kernels has interface {number}, not {_INTERFACE}; install it again (make kernels)")
    return package


def sizes_of(package: Any, a: Architecture, stack: Stack) -> Any:
    """Return the sizes of the encoder or the decoder as the package takes them.

    Raises:
        ValueError: The package does not support them.
    """
    layers = a.layers if stack == "encoder" else a.decoder_layers
    sizes = package.Sizes(
        *(layers, a.heads, a.d_kv, a.d_model, a.d_ff, a.vocabulary, a.max_distance),
        gated=a.gated,
        activation=a.activation,
        epsilon=a.epsilon,
        encoder=stack == "encoder",
    )
    if not sizes.supported:
        raise ValueError(f"the sizes have no kernel ({sizes})")
    return sizes


def products(graph: GraphWeights) -> list[list[str]]:
    """Return the names of the inputs of each product with rounded weights, in order."""
    return [node.inputs for node in graph.nodes if node.operator in (_BY_CHANNEL, _BY_GROUP)]


def embedding(graph: GraphWeights, a: Architecture) -> dict[str, np.ndarray]:
    """Return the token embedding as the package takes it."""
    rows = f"{a.family.EMBEDDING}.rows.int8"
    values = graph.array(rows, np.int8).reshape(a.vocabulary, a.d_model)
    return {"embedding": values, "embedding_scale": graph.array(f"{rows}.scale", np.float32)}


def matrix(package: Any, graph: GraphWeights, names: Sequence[Sequence[str]], size: int) -> Any:
    """Return the weights of products with one input, side by side.

    Args:
        package: The package.
        graph: The graph.
        names: Names of the inputs of each product's node.
        size: Size of a row of the products' input.

    Raises:
        ValueError: The products' inputs are rounded in different ways.
    """
    kinds = {(grouped[0] if (grouped := _GROUPED.search(each[1])) else each[2]) for each in names}
    if len(kinds) > 1:
        raise ValueError(f"products of one input round it in different ways ({', '.join(sorted(kinds))})")
    scales = [graph.array(f"{each[1]}.scale", np.float32) for each in names]
    if grouped := _GROUPED.search(names[0][1]):
        bits, group = int(grouped[1]), int(grouped[2])
        values = np.concatenate([graph.array(each[1], np.uint8) for each in names])
        return package.Matrix(values, np.concatenate(scales).reshape(-1, size // group), bits, group)
    values = np.concatenate([graph.array(each[1], np.int8).reshape(size, -1) for each in names], axis=1)
    step = 0.0 if names[0][2] == _BY_ROW else float(graph.array(names[0][2], np.float32)[0])
    return package.Matrix(values, np.concatenate(scales), step=step)

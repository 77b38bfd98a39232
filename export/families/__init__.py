"""Model families: one module per family, with everything that differs between families.

To add a family, write a module with the names of `Family` and list it in `FAMILIES`. The rest of `export` gets layer
names, tensor shapes, architectures and graph parts from the family. A family's module does not import onnx at its top,
since checkpoints are also read in installations without onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lora_ft.core.errors import UsageError
from lora_ft.export.families import t5

if TYPE_CHECKING:
    from lora_ft.export.checkpoint.architecture import Architecture
    from lora_ft.export.onnx.model_parts import ModelParts, Weights
    from lora_ft.export.onnx.quantization import WeightFormat

Stack = t5.Stack


class Family(Protocol):
    """A family of encoder-decoders with one set of layer names.

    Attributes:
        NAME: Name of the family, for the bill of materials.
        MODEL_TYPES: Values of `model_type` in config.json.
        EMBEDDING, HEAD: Names of the token embedding and of the projection onto the vocabulary.
        COPIES: Names under which some savers repeat the embedding.
        UNUSED: Tensors that checkpoints may contain but that no version of transformers uses.
        SCALED_BY_ROW: Endings of layers whose inputs need a scale per row, since no fixed scale fits.
        KEPT_FP32: Endings of layers that overflow 16-bit floats.
    """

    NAME: str
    MODEL_TYPES: tuple[str, ...]
    EMBEDDING: str
    HEAD: str
    COPIES: tuple[str, ...]
    UNUSED: frozenset[str]
    SCALED_BY_ROW: tuple[str, ...]
    KEPT_FP32: tuple[str, ...]

    def read_architecture(self, config: Mapping[str, Any], folder: Path) -> Architecture:
        """Return the architecture that a config.json describes, or raise UsageError."""

    def layer_kind(self, layer: str) -> str:
        """Return the kind of a layer, one of `lora_ft.export.precision.KINDS`."""

    def tensor_shapes(self, architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield (name, shape) of every tensor except the embedding and the head."""

    def shared_inputs(self, architecture: Architecture) -> Iterator[tuple[str, list[str]]]:
        """Yield each norm or layer whose output channels can be scaled, with the layers that read them."""

    def norms(self, architecture: Architecture, stack: Stack) -> list[str]:
        """Return the norms of a stack in the order of computation: those of each block, then the final one."""

    def biases(self, architecture: Architecture, stack: Stack) -> list[str]:
        """Return the tables of position bias of a stack, one of each block, or one for all."""

    def graph_parts(
        self, architecture: Architecture, weights: Weights, formats: Callable[[str], WeightFormat]
    ) -> ModelParts:
        """Return the parts of a model, from which graphs are assembled."""


FAMILIES: tuple[Family, ...] = (t5,)
MODEL_TYPES = tuple(name for family in FAMILIES for name in family.MODEL_TYPES)


def family_of(model_type: str | None, folder: Path | None = None) -> Family:
    """Return the family of a `model_type`.

    Args:
        model_type: Value of `model_type` in config.json, or None if it is missing.
        folder: Folder of the checkpoint, for the message.

    Raises:
        UsageError: The model type is not supported.
    """
    for family in FAMILIES:
        if model_type in family.MODEL_TYPES:
            return family
    raise UsageError(
        f"{f'{folder}: ' if folder else ''}the model type '{model_type}' is not supported "
        f"(supported: {', '.join(MODEL_TYPES)})",
        "use FLAN-T5, T5 1.1 or ByT5 (all three are of type t5), mT5 or UMT5",
    )

"""Model families: everything that differs between them, one module each.

To add a family, write a module with the names of `Family` and list it in `FAMILIES`. The rest of `export` asks the
family for layer names, tensor shapes, architectures and graph parts, and knows none of its own. The module imports no
onnx at its top: checkpoints are also read where only training is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lora_ft.core.errors import UsageError
from lora_ft.export.families import t5

if TYPE_CHECKING:
    from lora_ft.export.checkpoint.architecture import Architecture
    from lora_ft.export.onnx.quantization import WeightFormat
    from lora_ft.export.onnx.t5 import T5, Weights


class Family(Protocol):
    """A family of encoder-decoders with one set of layer names.

    Attributes:
        MODEL_TYPES: Values of `model_type` in config.json.
        EMBEDDING, HEAD: Layers that look tokens up and that score them.
        COPIES: Names under which some savers repeat the embedding.
        UNUSED: Tensors that checkpoints may hold and no version of transformers uses.
        SCALED_BY_ROW: Endings of layers whose inputs have no fixed scale that serves them.
    """

    MODEL_TYPES: tuple[str, ...]
    EMBEDDING: str
    HEAD: str
    COPIES: tuple[str, ...]
    UNUSED: frozenset[str]
    SCALED_BY_ROW: tuple[str, ...]

    def read_architecture(self, config: Mapping[str, Any], folder: Path) -> Architecture:
        """Return the architecture that a config.json describes, or raise UsageError."""

    def layer_kind(self, layer: str) -> str:
        """Return the kind of a layer, one of `lora_ft.export.precision.KINDS`."""

    def tensor_shapes(self, architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor but the embedding and the head."""

    def shared_inputs(self, architecture: Architecture) -> Iterator[tuple[str, list[str]]]:
        """Yield each norm or layer whose output channels can be scaled, and the layers that read them."""

    def graph_parts(self, architecture: Architecture, weights: Weights, formats: Callable[[str], WeightFormat]) -> T5:
        """Return the builder of a model's graph parts: encode, cross, decode, head."""


FAMILIES: tuple[Family, ...] = (t5,)
MODEL_TYPES = tuple(name for family in FAMILIES for name in family.MODEL_TYPES)


def family_of(model_type: str) -> Family:
    """Return the family of a `model_type`.

    Raises:
        UsageError: The model type is not supported.
    """
    for family in FAMILIES:
        if model_type in family.MODEL_TYPES:
            return family
    raise UsageError(
        f"the model type '{model_type}' is not supported (supported: {', '.join(MODEL_TYPES)})",
        "use FLAN-T5, T5 1.1 or ByT5 (all three are of type t5), mT5 or UMT5",
    )

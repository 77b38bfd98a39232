"""A model to publish, with the data that publishing needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.bundle.assemble import BundleMetadata, read_model, rescaled
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.checkpoint.reader import Checkpoint
from lora_ft.export.onnx.smoothquant import Sample
from lora_ft.export.parity import Reference


@dataclass(frozen=True)
class ExportSource:
    """A checkpoint with PyTorch's answers to compare a bundle or a bank with.

    Attributes:
        checkpoint: transformers folder (config.json, *.safetensors). For a bank, the base.
        tokenizer: Tokenizer of the prompts, with their codec.
        metadata: Entries of the manifest, and the prompt.
        references: PyTorch's answers to rows of the task. Iterated once.
        probe: PyTorch's answers to sentences that may be published with the bundle, for `lora-ft verify`.
        samples: Calibration rows. Iterated once, and only if a precision rounds weights.
        scaled: Whether PyTorch scales the hidden state before the head. Default: according to config.json.
    """

    checkpoint: Path
    tokenizer: Tokenizer
    metadata: BundleMetadata
    references: Iterable[Reference]
    probe: Reference
    samples: Iterable[Sample] = ()
    scaled: bool | None = None

    def read(self) -> tuple[Architecture, Checkpoint]:
        """Return the architecture and the weights.

        Raises:
            UsageError, LoraFtError: See `read_model`.
        """
        architecture, weights = read_model(self.checkpoint)
        return architecture if self.scaled is None else rescaled(architecture, self.scaled), weights

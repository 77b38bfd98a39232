"""Reader of a transformers folder (config.json and safetensors) that does not need transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import read_json
from lora_ft.export.checkpoint.weight_files import weight_files
from lora_ft.export.families import FAMILIES
from lora_ft.export.runtime.safetensors_file import describe_tensors, map_tensors


class Checkpoint:
    """Config and weights of one model. Weights are mapped from disk and converted to float32 on access.

    Attributes:
        folder: Folder of the checkpoint.
        config: Content of config.json.
        files: Weight files.
        described: (dtype, shape) of every tensor in the files, by name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"{folder} is not a checkpoint: it has no config.json", "name a folder that `save_pretrained` wrote"
            )
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self.files = weight_files(folder)
        self.described = {name: entry for file in self.files for name, entry in describe_tensors(file).items()}
        self._tensors: dict[str, np.ndarray] = {}
        for file in self.files:
            self._tensors |= map_tensors(file)[0]
        # Tensors with shared memory are saved under one name, and some savers choose another name than transformers.
        for family in FAMILIES:
            embedding, *aliases = (f"{layer}.weight" for layer in (family.EMBEDDING, *family.COPIES, family.HEAD))
            copies = [name for name in aliases if name in self._tensors]
            if self.config.get("model_type") in family.MODEL_TYPES and embedding not in self._tensors and copies:
                self._tensors[embedding] = self._tensors[copies[0]]

    @property
    def names(self) -> list[str]:
        """Names of all weights."""
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the weight `name` as float32, in torch's layout (linear layers are [out, in])."""
        array = self.stored(name)
        if array.dtype == np.uint16:  # bfloat16: the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(array, np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the weight `name`, without reading it."""
        return self.stored(name).shape

    def peak(self, name: str) -> float:
        """Return 0, since a checkpoint has no calibration statistics."""
        return 0.0

    def moments(self, name: str) -> np.ndarray | None:
        """Return None, since a checkpoint has no calibration statistics."""
        return None

    def stored(self, name: str) -> np.ndarray:
        """Return the weight `name` as stored, mapped from disk; uint16 holds the bits of bfloat16."""
        if name not in self._tensors:
            raise LoraFtError(f"{self.folder} has no weight named {name}", "copy the whole checkpoint again")
        return self._tensors[name]

"""The adapters of a bank: one file each, mapped on first use, and stacked for the rows of a batch.

An adapter's file is safetensors. Its mapped arrays are the graphs' inputs if all rows have that adapter; only if rows
differ are they copied, once a batch. ONNX Runtime's own `.onnx_adapter` gives all rows of a call the same adapter, and
does not work with bound calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from lora_ft.core.errors import LoraFtError, UsageError, sound_content
from lora_ft.core.json_limits import parse_json
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.runtime.manifest import BANK, adapter_file
from lora_ft.export.runtime.safetensors_file import map_tensors
from lora_ft.export.runtime.session import ort_value
from lora_ft.export.runtime.settings import Settings

VERSION = 2
TASK = "lora-ft"  # key of an adapter's task in the metadata of its file
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # (dtype, shape) of one adapter's arrays, by the graphs' inputs


class Bank:
    """The adapters of one bundle.

    Args:
        folder: Folder of the bundle.
        entries: Entry of each adapter in the manifest, by name.
        shapes: Type and shape of every array that an adapter must have.
        inputs: Names of the adapters' inputs, by graph.
        provider: "cpu" or "cuda", where the graphs run.
    """

    def __init__(
        self,
        folder: Path,
        entries: Mapping[str, Mapping[str, Any]],
        shapes: Shapes,
        inputs: Mapping[str, Sequence[str]],
        provider: str = "cpu",
    ) -> None:
        self._folder, self._entries = folder, entries
        self.shapes, self.inputs, self.provider = shapes, inputs, provider
        self._read: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {}
        self._settings: dict[str, Settings] = {}

    @classmethod
    def open(cls, folder: Path, entries: Mapping[str, Mapping[str, Any]], provider: str) -> Bank:
        """Open the bank of a bundle."""
        content = parse_json((folder / BANK).read_bytes(), folder / BANK)
        if not isinstance(content, dict):
            raise LoraFtError(f"{folder / BANK} is not a JSON object", "export the bank again")
        if content.get("version") != VERSION:
            raise UsageError(f"{folder / BANK} is of version {content.get('version')!r}; this is for {VERSION}")
        shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape) in content["values"].items()}
        return cls(folder, entries, shapes, content["inputs"], provider)

    @property
    def names(self) -> list[str]:
        """Names of all adapters."""
        return sorted(self._entries)

    def settings(self, name: str, tokenizer: Tokenizer) -> Settings:
        """Return the settings of the task that an adapter was trained on.

        Raises:
            UsageError: There is no adapter of this name.
            LoraFtError: Its file is damaged.
        """
        task = self._adapter(name)[1]
        if name not in self._settings:
            with sound_content(f"the adapter {name} of {self._folder}", "add the adapter again"):
                lookup = {"prompt_lookup": self._entries[name]["prompt_lookup"]}
                self._settings[name] = Settings.of(task["prompt"], task["generation"] | lookup, tokenizer)
        return self._settings[name]

    def probes(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the name of each adapter and PyTorch's answers to repeat its verification."""
        return [(name, self._adapter(name)[1]["probe"]) for name in self.names]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of one adapter, by the graphs' inputs."""
        return self._adapter(name)[0]

    def choose(self, names: Sequence[str | None]) -> Chosen | None:
        """Return the adapters of a batch's rows, or None if no row has one.

        Raises:
            UsageError: There is no adapter of some name.
        """
        for name in dict.fromkeys(names):
            if name is not None:
                self._adapter(name)
        return Chosen(self, tuple(names)) if any(name is not None for name in names) else None

    def _adapter(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if name not in self._entries:
            raise unknown(name, self.names)
        if name not in self._read:
            path = self._folder / adapter_file(name, self._entries[name]["sha256"])
            arrays, texts = map_tensors(path)
            found = {key: (array.dtype.name, array.shape) for key, array in arrays.items()}
            try:
                task = parse_json(texts[TASK], path)
            except (KeyError, LoraFtError) as error:
                raise LoraFtError(f"{path} does not say what it is for", "add the adapter again") from error
            if found != self.shapes:
                odd = sorted(key for key in found.keys() | self.shapes.keys() if found.get(key) != self.shapes.get(key))
                raise LoraFtError(f"{path} is for other graphs: {odd[0]} differs", "add the adapter again")
            self._read[name] = arrays, task
        return self._read[name]


@dataclass(frozen=True)
class Chosen:
    """The adapters of a batch's rows.

    Attributes:
        bank: Bank that holds them.
        names: Name of each row's adapter, or None for the base.
    """

    bank: Bank
    names: tuple[str | None, ...]

    def values(self, inputs: Sequence[str]) -> list[ort.OrtValue]:
        """Return values for inputs of a graph, each [rows, …], or [1, …] if all rows have the same adapter."""
        if len(set(self.names)) == 1:
            arrays = self.bank.arrays(self.names[0] or "")
            return [ort_value(arrays[name][None], self.bank.provider) for name in inputs]
        known = {name: self.bank.arrays(name) for name in dict.fromkeys(self.names) if name is not None}
        made = []
        for key in inputs:
            dtype, shape = self.bank.shapes[key]
            stack = np.zeros((len(self.names), *shape), dtype)
            for row, name in zip(stack, self.names, strict=True):
                if name is not None:
                    row[...] = known[name][key]
            made.append(ort_value(stack, self.bank.provider))
        return made

    @cached_property
    def _kept(self) -> dict[tuple[str, ...], list[ort.OrtValue]]:
        """Values that later steps read again, by their inputs."""
        return {}

    def held(self, inputs: Sequence[str]) -> list[ort.OrtValue]:
        """Return `values`, computed once."""
        key = tuple(inputs)
        if key not in self._kept:
            self._kept[key] = self.values(inputs)
        return self._kept[key]

    def take(self, rows: np.ndarray) -> Chosen | None:
        """Return the adapters of some of the rows [n]."""
        if len(set(self.names)) == 1:
            return self if len(rows) == len(self.names) else Chosen(self.bank, self.names[:1] * len(rows))
        return self.bank.choose([self.names[i] for i in rows])


def unknown(name: str, names: Sequence[str]) -> UsageError:
    """Return the error about an unknown adapter."""
    there = f"there are {', '.join(names)}" if names else "it has none"
    return UsageError(f"this bundle has no adapter {name!r}", there)

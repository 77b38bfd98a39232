"""A bundle's adapters: one file each, mapped when it is first asked for, and stacked for the rows of a batch.

An adapter's file is safetensors: mapped as it lies, its arrays are the graphs' inputs where all rows have that adapter,
and only where rows differ are they copied, once for a batch. ONNX Runtime's own `.onnx_adapter` gives all rows of a
call the same adapter, and not to a bound call.
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
TASK = "lora-ft"  # the text in an adapter's file that says what it is for
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # (dtype, shape) of one adapter's arrays, by the graphs' inputs


class Bank:
    """The adapters of one bundle.

    Args:
        folder: of the bundle.
        entries: what its manifest says of each adapter, by name.
        shapes: what each must hold.
        inputs: which of that each graph takes.
        provider: where the graphs run.
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
        """That of a bundle."""
        content = parse_json((folder / BANK).read_bytes(), folder / BANK)
        if not isinstance(content, dict):
            raise LoraFtError(f"{folder / BANK} is not a JSON object", "export the bank again")
        if content.get("version") != VERSION:
            raise UsageError(f"{folder / BANK} is of version {content.get('version')!r}; this is for {VERSION}")
        shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape) in content["values"].items()}
        return cls(folder, entries, shapes, content["inputs"], provider)

    @property
    def names(self) -> list[str]:
        """Of all adapters."""
        return sorted(self._entries)

    def settings(self, name: str, tokenizer: Tokenizer) -> Settings:
        """Of the task that an adapter was trained on.

        Raises:
            UsageError: there is none of this name.
            LoraFtError: its file is not as it should be.
        """
        task = self._adapter(name)[1]
        if name not in self._settings:
            with sound_content(f"the adapter {name} of {self._folder}", "add the adapter again"):
                lookup = {"prompt_lookup": self._entries[name]["prompt_lookup"]}
                self._settings[name] = Settings.of(task["prompt"], task["generation"] | lookup, tokenizer)
        return self._settings[name]

    def probes(self) -> list[tuple[str, dict[str, Any]]]:
        """Of each adapter, PyTorch's answers to repeat the verification with."""
        return [(name, self._adapter(name)[1]["probe"]) for name in self.names]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Of one adapter, by the graphs' inputs."""
        return self._adapter(name)[0]

    def choose(self, names: Sequence[str | None]) -> Chosen | None:
        """The adapters of a batch's rows; None where no row has one.

        Raises:
            UsageError: there is none of some name.
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
    """Adapters of the rows of a batch.

    Attributes:
        bank: which has them.
        names: of each row.
    """

    bank: Bank
    names: tuple[str | None, ...]

    def values(self, inputs: Sequence[str]) -> list[ort.OrtValue]:
        """Of some inputs of a graph, each [rows, …], or [1, …] where all rows have the same adapter."""
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
        """Values that steps go on reading, by their inputs."""
        return {}

    def held(self, inputs: Sequence[str]) -> list[ort.OrtValue]:
        """As `values`, made once."""
        key = tuple(inputs)
        if key not in self._kept:
            self._kept[key] = self.values(inputs)
        return self._kept[key]

    def take(self, rows: np.ndarray) -> Chosen | None:
        """Those of some of the rows [n]."""
        if len(set(self.names)) == 1:
            return self if len(rows) == len(self.names) else Chosen(self.bank, self.names[:1] * len(rows))
        return self.bank.choose([self.names[i] for i in rows])


def unknown(name: str, names: Sequence[str]) -> UsageError:
    """The error about an adapter that there is not."""
    there = f"there are {', '.join(names)}" if names else "it has none"
    return UsageError(f"this bundle has no adapter {name!r}", there)

"""The adapters of a bank: one file each, mapped on first use, and stacked for the rows of a batch.

An adapter's file is safetensors. If all rows use the same adapter, its mapped arrays are the inputs of the graphs.
Only if rows differ are the arrays copied, once per batch. ONNX Runtime's own `.onnx_adapter` applies one adapter to
all rows of a call and does not work with bound calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from lora_ft.core.errors import BundleError, LoraFtError, UsageError, sound_content
from lora_ft.core.json_limits import parse_json
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.runtime.manifest import BANK, adapter_file
from lora_ft.export.runtime.safetensors_file import map_tensors
from lora_ft.export.runtime.session import ort_value
from lora_ft.export.runtime.settings import Settings

VERSION = 2
TASK = "lora-ft"  # key of an adapter's task in the metadata of its file
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # (dtype, shape) of an adapter's arrays, by graph input


class Bank:
    """The adapters of one bundle.

    Args:
        folder: Folder of the bundle.
        entries: Entry of each adapter in the manifest, by name.
        shapes: Dtype and shape of every array that an adapter must have.
        inputs: Names of the adapters' inputs, by graph.
        provider: "cpu" or "cuda": the provider that runs the graphs.

    Attributes:
        loads: Number of adapters that were read from their files.
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
        self._packed: dict[str, Any] = {}
        self.loads = 0

    def renewed(self, entries: Mapping[str, Mapping[str, Any]]) -> Bank:
        """Return the bank with other adapters; those that are unchanged are not read again."""
        bank = Bank(self._folder, entries, self.shapes, self.inputs, self.provider)
        unchanged = [name for name, entry in entries.items() if self._entries.get(name) == entry]
        bank._read = {name: self._read[name] for name in unchanged if name in self._read}
        bank._settings = {name: self._settings[name] for name in unchanged if name in self._settings}
        bank._packed = {name: self._packed[name] for name in unchanged if name in self._packed}
        bank.loads = self.loads
        return bank

    @classmethod
    def open(cls, folder: Path, entries: Mapping[str, Mapping[str, Any]], provider: str) -> Bank:
        """Open the bank of a bundle."""
        content = parse_json((folder / BANK).read_bytes(), folder / BANK)
        if not isinstance(content, dict):
            raise LoraFtError(f"{folder / BANK} is not a JSON object", "export the bank again")
        if content.get("version") != VERSION:
            raise UsageError(
                f"{folder / BANK}: the version is not supported (got {content.get('version')!r}, supported: {VERSION})",
                "export the bank again",
            )
        shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape) in content["values"].items()}
        return cls(folder, entries, shapes, content["inputs"], provider)

    @property
    def names(self) -> list[str]:
        """Names of all adapters."""
        return sorted(self._entries)

    def settings(self, name: str, tokenizer: Tokenizer) -> Settings:
        """Return the settings of the task that an adapter was trained on.

        Raises:
            UsageError: The bank has no adapter of this name.
            LoraFtError: The adapter's file is damaged.
        """
        task = self._adapter(name)[1]
        if name not in self._settings:
            with sound_content(f"the adapter {name} of {self._folder}", "add the adapter again"):
                # products with adapters have other bits for several tokens, so drafts would change answers
                defaults = {**task["generation"], "prompt_lookup": False}
                self._settings[name] = Settings.of(task["prompt"], defaults, tokenizer)
        return self._settings[name]

    def probes(self) -> list[tuple[str, dict[str, Any]]]:
        """Return (name, PyTorch's answers) of each adapter, to repeat its verification."""
        return [(name, self.probe(name)) for name in self.names]

    def probe(self, name: str) -> dict[str, Any]:
        """Return PyTorch's answers of an adapter."""
        return self._adapter(name)[1]["probe"]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of an adapter, by graph input."""
        return self._adapter(name)[0]

    def packed(self, name: str, pack: Callable[[Mapping[str, np.ndarray]], Any]) -> Any:
        """Return `pack(arrays(name))`, computed once; a bank has one kernel."""
        if name not in self._packed:
            self._packed[name] = pack(self.arrays(name))
        return self._packed[name]

    def select(self, names: Sequence[str | None]) -> RowAdapters | None:
        """Return the adapters of a batch's rows, or None if no row has one.

        Raises:
            UsageError: The bank has no adapter of one of the names.
        """
        for name in dict.fromkeys(names):
            if name is not None:
                self._adapter(name)
        return RowAdapters(self, tuple(names)) if any(name is not None for name in names) else None

    def _adapter(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if name not in self._entries:
            raise unknown_adapter(name, self.names)
        if name not in self._read:
            path = self._folder / adapter_file(name, self._entries[name]["sha256"])
            if not path.is_file():
                raise BundleError(f"the bundle {self._folder} lacks the file of the adapter {name!r}", "load it again")
            arrays, texts = map_tensors(path)
            actual = {key: (array.dtype.name, array.shape) for key, array in arrays.items()}
            try:
                task = parse_json(texts[TASK], path)
            except (KeyError, LoraFtError) as error:
                raise LoraFtError(f"{path}: the metadata lack the task", "add the adapter again") from error
            if actual != self.shapes:
                odd = sorted(
                    key for key in actual.keys() | self.shapes.keys() if actual.get(key) != self.shapes.get(key)
                )
                raise LoraFtError(f"{path} does not match the graphs: {odd[0]} differs", "add the adapter again")
            self._read[name] = arrays, task
            self.loads += 1
        return self._read[name]


@dataclass(frozen=True)
class RowAdapters:
    """The adapters of a batch's rows.

    Attributes:
        bank: Bank of the adapters.
        names: Name of each row's adapter, or None for the base.
    """

    bank: Bank
    names: tuple[str | None, ...]

    def values(self, inputs: Sequence[str]) -> list[ort.OrtValue]:
        """Return the values of a graph's inputs, each [rows, …], or [1, …] if all rows have the same adapter."""
        if len(set(self.names)) == 1:
            arrays = self.bank.arrays(self.names[0] or "")
            return [ort_value(arrays[name][None], self.bank.provider) for name in inputs]
        arrays_of = {name: self.bank.arrays(name) for name in dict.fromkeys(self.names) if name is not None}
        values = []
        for key in inputs:
            dtype, shape = self.bank.shapes[key]
            stack = np.zeros((len(self.names), *shape), dtype)
            for row, name in zip(stack, self.names, strict=True):
                if name is not None:
                    row[...] = arrays_of[name][key]
            values.append(ort_value(stack, self.bank.provider))
        return values

    @cached_property
    def _cached(self) -> dict[tuple[str, ...], list[ort.OrtValue]]:
        """Values that later steps reuse, by input names."""
        return {}

    def cached(self, inputs: Sequence[str]) -> list[ort.OrtValue]:
        """Return `values(inputs)`, computed once."""
        key = tuple(inputs)
        if key not in self._cached:
            self._cached[key] = self.values(inputs)
        return self._cached[key]

    def packed(self, pack: Callable[[Mapping[str, np.ndarray]], Any]) -> list[Any | None]:
        """Return each row's adapter as `Bank.packed`, or None for the base."""
        return [None if name is None else self.bank.packed(name, pack) for name in self.names]

    def take(self, rows: np.ndarray) -> RowAdapters | None:
        """Return the adapters of the rows with these numbers [n]."""
        if len(set(self.names)) == 1:
            return self if len(rows) == len(self.names) else RowAdapters(self.bank, self.names[:1] * len(rows))
        return self.bank.select([self.names[i] for i in rows])


def unknown_adapter(name: str, names: Sequence[str]) -> UsageError:
    """Return the error about an unknown adapter."""
    available = f"choose one of {', '.join(names)}" if names else "omit the adapter, or add one with `lora-ft bank add`"
    return UsageError(f"this bundle has no adapter {name!r}", available)

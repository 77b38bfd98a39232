"""Add adapters to a bank and remove them, one file per adapter, without changing the base.

A file is written and synced under a temporary name, then renamed, and only then added to the manifest. The manifest is
replaced as a whole, so a concurrent reader sees either the old bank or the new one. Files that the manifest does not
name are deleted last.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lora_ft.core import locks
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import read_json, sync, write_json
from lora_ft.core.hardware import allowed_cpus
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.bundle.adapter_slots import Adapter, AdapterSlots, folded, inner_peaks, pack_adapter
from lora_ft.export.bundle.assemble import BundleMetadata, prompt_of
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.onnx.model_parts import Weights
from lora_ft.export.onnx.smoothquant import Fold, Folded, Sample
from lora_ft.export.parity import Probe, Reference, Report, compare, divergence, require
from lora_ft.export.runtime import manifest
from lora_ft.export.runtime.bank import TASK, VERSION, unknown_adapter
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.safetensors_file import map_tensors, write_tensors
from lora_ft.export.runtime.session import choose_provider

# With rounded weights, an adapter may diverge from PyTorch by this share of its effect, or by this number of nats. Both
# are the usual cost of rounding a T5 (int8: 0.002 to 0.006, 4 bits: 0.03 to 0.07), and a bundle of the adapter in the
# same precision diverges as much. A wrong or missing adapter diverges by its whole effect, or more.
_SHARE, _NATS = 0.25, 0.05

# (bank with the new adapter, name of the adapter) -> entries for the manifest that explain the judgement
Judge = Callable[[Generator, str], Mapping[str, Any]]


@dataclass(frozen=True)
class BankAdapter:
    """An adapter to add to a bank.

    Attributes:
        name: Name by which texts select the adapter.
        weights: Weights of the adapter.
        origin: Prompt, lengths, labels and options of the adapter's task.
        tokenizer: Tokenizer with the codec of the task.
        references: Returns PyTorch's answers to rows of the task, from base and adapter together.
        probe: PyTorch's answers to sentences that may be published with the adapter.
        samples: Calibration rows.
        judge: Raises LoraFtError to refuse the adapter. Called only if weights are rounded.
        task: Content of the task for the manifest, which scoring uses.
    """

    name: str
    weights: Adapter
    origin: BundleMetadata
    tokenizer: Tokenizer
    references: Callable[[], Iterable[Reference]]
    probe: Probe
    samples: tuple[Sample, ...]
    judge: Judge = lambda generator, name: {}
    task: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BankLayout:
    """The adapter slots and the folded outliers of a bank, as stored in its files.

    Attributes:
        slots: Layers and ranks.
        fold: Factors folded into the weights.
        base: Hash of the base's weights.
    """

    slots: AdapterSlots
    fold: Fold
    base: str

    @classmethod
    def read(cls, folder: Path) -> BankLayout:
        """Read the layout of a bank.

        Raises:
            UsageError: The bundle is not a bank.
        """
        if not (folder / manifest.BANK).is_file():
            raise UsageError(f"{folder} is not a bank", "create a bank with `lora-ft export --adapters RUN…`")
        content = read_json(folder / manifest.BANK)
        arrays, texts = map_tensors(folder / manifest.FOLD)
        columns, rows = (
            {key.removeprefix(kind): array for key, array in arrays.items() if key.startswith(kind)}
            for kind in ("columns.", "rows.")
        )
        fold = Fold(columns, rows, json.loads(texts["peaks"]))
        return cls(AdapterSlots.read(content["plan"]), fold, content["base_sha256"])

    def arrays(
        self, adapter: Adapter, architecture: Architecture, base: Weights, samples: Iterable[Sample]
    ) -> dict[str, np.ndarray]:
        """Return the arrays of an adapter's file.

        Args:
            adapter: An adapter that fits the slots.
            architecture, base: The bank's base, read from its checkpoint.
            samples: Calibration rows, used only if weights are rounded.
        """
        adapter_folded, peaks = folded(adapter, self.fold), {}
        if any(not group.exact for group in self.slots.groups.values()):
            peaks = inner_peaks(
                architecture, Folded.by(architecture, base, self.fold), adapter_folded, self.slots, samples
            )
        return pack_adapter(self.slots, adapter_folded, peaks)

    def write(self, folder: Path) -> None:
        """Write the layout into a bundle under construction."""
        values = {name: entry for group in self.slots.groups.values() for name, entry in group.values.items()}
        inputs = {name.removesuffix(".onnx"): _inputs(folder / name, values) for name in manifest.ADAPTED_GRAPHS}
        content = {"version": VERSION, "base_sha256": self.base, "plan": self.slots.as_dict(), "values": values}
        write_json(folder / manifest.BANK, {**content, "inputs": inputs})
        arrays = {f"columns.{layer}": scale for layer, scale in self.fold.columns.items()}
        arrays |= {f"rows.{layer}": scale for layer, scale in self.fold.rows.items()}
        arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
        write_tensors(folder / manifest.FOLD, arrays, {"peaks": json.dumps(dict(self.fold.peaks))})


def add_adapter(
    folder: Path, adapter: BankAdapter, architecture: Architecture, base: Weights, *, overwrite: bool = False
) -> Report:
    """Add an adapter to a bank, after comparing it with PyTorch.

    Args:
        folder: Folder of the bank.
        adapter: Adapter to add.
        architecture, base: The bank's base, read from its checkpoint.
        overwrite: Replace an existing adapter of this name.

    Raises:
        UsageError: The name already exists, or the adapter does not fit the slots.
        LoraFtError: The adapter's answers differ from PyTorch's. The bank stays unchanged.
    """
    layout = BankLayout.read(folder)
    layout.slots.check(adapter.name, adapter.weights)
    arrays = layout.arrays(adapter.weights, architecture, base, adapter.samples)
    prompt = prompt_of(adapter.origin, adapter.tokenizer)
    task = {"prompt": prompt, "generation": dict(adapter.origin.generation), "probe": asdict(adapter.probe)}
    with locked(folder) as content:
        if adapter.name in content[manifest.ADAPTERS] and not overwrite:
            raise UsageError(
                f"{folder} already has an adapter {adapter.name!r}", "pass NAME=RUN with another name, or --overwrite"
            )
        entry = store(folder, adapter.name, arrays, json.dumps(task, ensure_ascii=False))
        content[manifest.ADAPTERS][adapter.name] = entry
        generator = Generator(folder, content, allowed_cpus(), choose_provider("auto", content["precision"]))
        report = compare(generator, references := list(adapter.references()), adapter=adapter.name)
        probe_report = adapter.probe.check(generator, adapter.name)
        if content["precision"] == "fp32":
            require(report)
            require(probe_report)
        elif not report.divergence <= (allowed := max(_NATS, _SHARE * divergence(generator, references, None))):
            raise LoraFtError(
                f"the adapter {adapter.name!r} diverges from PyTorch by {report.divergence:.3g} nats in this bank "
                f"(allowed: {allowed:.3g}); nothing was changed",
                "export the bank again with it among --adapters, or in another --precision",
            )
        reasons = dict(adapter.judge(generator, adapter.name))
        entry |= {"parity": report.as_dict(), "probe": probe_report.as_dict(), "base": adapter.origin.base, **reasons}
        entry["task"] = dict(adapter.task)
        write_json(folder / manifest.NAME, content)
    return report


def remove_adapter(folder: Path, names: Iterable[str]) -> None:
    """Remove adapters from a bank.

    Raises:
        UsageError: The bank has no adapter of one of the names. No adapter is removed then.
    """
    BankLayout.read(folder)
    with locked(folder) as content:
        existing = sorted(content[manifest.ADAPTERS])
        for name in names:
            if content[manifest.ADAPTERS].pop(name, None) is None:
                raise unknown_adapter(name, existing)
        write_json(folder / manifest.NAME, content)


def store(folder: Path, name: str, arrays: Mapping[str, np.ndarray], task: str) -> dict[str, Any]:
    """Write an adapter's file into a `locked` bank, and return its entry for the manifest.

    Args:
        folder: Folder of the bank.
        name: Name of the adapter.
        arrays: Result of `BankLayout.arrays`.
        task: Task of the adapter, as JSON.

    Raises:
        UsageError: The name is not a valid file name.
    """
    staged = folder / manifest.ADAPTERS / f".{os.getpid()}.partial"
    write_tensors(staged, arrays, {TASK: task})
    entry = manifest.describe(staged)
    os.replace(staged, folder / manifest.adapter_file(name, entry["sha256"]))
    return entry


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[dict[str, Any]]:
    """Lock a bank against other processes and yield its manifest. Then delete adapter files it does not name."""
    adapters = folder / manifest.ADAPTERS
    with locks.locked(folder.resolve(), wait=True):
        adapters.mkdir(exist_ok=True)
        try:
            yield manifest.read_manifest(folder)
        finally:
            named = set(manifest.adapter_files(read_json(folder / manifest.NAME)))
            for path in adapters.iterdir():
                if path.relative_to(folder).as_posix() not in named:
                    path.unlink()
            sync(adapters)


def _inputs(graph: Path, values: Mapping[str, Any]) -> list[str]:
    """Return the names of a graph's adapter inputs."""
    return [entry.name for entry in onnx.load(graph, load_external_data=False).graph.input if entry.name in values]

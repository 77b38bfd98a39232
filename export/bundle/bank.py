"""Add adapters to a bank and remove them, one file each, without touching the base.

A file is written and synced under a temporary name, renamed, and only then named by the manifest, which is replaced as
a whole: a concurrent reader sees either the old bank or the new one. Files that no manifest names are deleted last.
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
from lora_ft.export.onnx.smoothquant import Fold, Folded, Sample
from lora_ft.export.onnx.t5 import Weights
from lora_ft.export.parity import Probe, Reference, Report, compare, divergence, require
from lora_ft.export.runtime import manifest
from lora_ft.export.runtime.bank import TASK, VERSION, unknown
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.safetensors_file import map_tensors, write_tensors
from lora_ft.export.runtime.session import choose_provider

# With rounded weights, an adapter may diverge from PyTorch by this share of its own effect, or by this many nats, the
# usual cost of rounding a T5 (int8 0.002 to 0.006, 4 bits 0.03 to 0.07). An adapter's own bundle of the same precision
# diverges as much. A wrong or lost adapter diverges by its whole effect, or more.
_SHARE, _NATS = 0.25, 0.05

# From a bank with a new adapter and the adapter's name: entries for the manifest that explain the judgement.
Judge = Callable[[Generator, str], Mapping[str, Any]]


@dataclass(frozen=True)
class BankAdapter:
    """An adapter to add to a bank.

    Attributes:
        name: Name by which texts select it.
        adapter: Its weights.
        origin: Prompt, lengths, labels and options of its task.
        tokenizer: Tokenizer with the codec of its task.
        references: Returns PyTorch's answers on rows of its task, by base and adapter together.
        probe: PyTorch's answers to sentences that may travel with it.
        samples: Rows for calibration.
        judge: Raises LoraFtError to refuse it, if weights are rounded.
        task: Its task, for the manifest; scoring reads it.
    """

    name: str
    adapter: Adapter
    origin: BundleMetadata
    tokenizer: Tokenizer
    references: Callable[[], Iterable[Reference]]
    probe: Probe
    samples: tuple[Sample, ...]
    judge: Judge = lambda generator, name: {}
    task: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BankLayout:
    """The adapter slots of a bank and its fold, as its files hold them.

    Attributes:
        plan: Layers and ranks.
        fold: Factors folded into the weights.
        base: Hash of the base's weights.
    """

    plan: AdapterSlots
    fold: Fold
    base: str

    @classmethod
    def read(cls, folder: Path) -> BankLayout:
        """Read the layout of a bank.

        Raises:
            UsageError: The bundle is not a bank.
        """
        if not (folder / manifest.BANK).is_file():
            raise UsageError(f"{folder} takes no adapters", "make a bank with `lora-ft export --adapters RUN…`")
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
            architecture, base: The bank's base, from its checkpoint.
            samples: Rows for calibration, if weights are rounded.
        """
        own, peaks = folded(adapter, self.fold), {}
        if any(not group.exact for group in self.plan.groups.values()):
            peaks = inner_peaks(architecture, Folded.by(base, self.fold), own, self.plan, samples)
        return pack_adapter(self.plan, own, peaks)

    def write(self, folder: Path) -> None:
        """Write the layout into a bundle under construction."""
        values = {name: entry for group in self.plan.groups.values() for name, entry in group.values.items()}
        inputs = {name.removesuffix(".onnx"): _inputs(folder / name, values) for name in manifest.ADAPTED_GRAPHS}
        content = {"version": VERSION, "base_sha256": self.base, "plan": self.plan.as_dict(), "values": values}
        write_json(folder / manifest.BANK, {**content, "inputs": inputs})
        arrays = {f"columns.{layer}": scale for layer, scale in self.fold.columns.items()}
        arrays |= {f"rows.{layer}": scale for layer, scale in self.fold.rows.items()}
        arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
        write_tensors(folder / manifest.FOLD, arrays, {"peaks": json.dumps(dict(self.fold.peaks))})


def add_adapter(
    folder: Path, member: BankAdapter, architecture: Architecture, base: Weights, *, overwrite: bool = False
) -> Report:
    """Add an adapter to a bank, after comparing it with PyTorch.

    Args:
        folder: Folder of the bank.
        member: The adapter.
        architecture, base: The bank's base, from its checkpoint.
        overwrite: Replace an adapter of this name.

    Raises:
        UsageError: The name is taken, or the adapter does not fit the slots.
        LoraFtError: The adapter differs from PyTorch; the bank stays unchanged.
    """
    room = BankLayout.read(folder)
    room.plan.check(member.name, member.adapter)
    arrays = room.arrays(member.adapter, architecture, base, member.samples)
    prompt = prompt_of(member.origin, member.tokenizer)
    task = {"prompt": prompt, "generation": dict(member.origin.generation), "probe": asdict(member.probe)}
    with locked(folder) as content:
        if member.name in content[manifest.ADAPTERS] and not overwrite:
            raise UsageError(
                f"{folder} has an adapter {member.name!r}", "take NAME=RUN with another name, or --overwrite"
            )
        entry = store(folder, member.name, arrays, json.dumps(task, ensure_ascii=False))
        content[manifest.ADAPTERS][member.name] = entry
        generator = Generator(folder, content, allowed_cpus(), choose_provider("auto", content["precision"]))
        report = compare(generator, references := list(member.references()), adapter=member.name)
        found = member.probe.check(generator, member.name)
        if content["precision"] == "fp32":
            require(report)
            require(found)
        elif not report.divergence <= (most := max(_NATS, _SHARE * divergence(generator, references, None))):
            raise LoraFtError(
                f"the adapter {member.name!r} diverges from PyTorch by {report.divergence:.3g} nats in this bank "
                f"(allowed: {most:.3g}); nothing was changed",
                "export the bank again with it among --adapters, or in another --precision",
            )
        judged = dict(member.judge(generator, member.name))
        entry |= {"parity": report.as_dict(), "probe": found.as_dict(), "base": member.origin.base, **judged}
        entry |= {
            "prompt_lookup": content["precision"] == "fp32" and report.lookup_is_lossless,
            "task": dict(member.task),
        }
        write_json(folder / manifest.NAME, content)
    return report


def remove_adapter(folder: Path, names: Iterable[str]) -> None:
    """Remove adapters from a bank.

    Raises:
        UsageError: There is no adapter of some name; then none is removed.
    """
    BankLayout.read(folder)
    with locked(folder) as content:
        there = sorted(content[manifest.ADAPTERS])
        for name in names:
            if content[manifest.ADAPTERS].pop(name, None) is None:
                raise unknown(name, there)
        write_json(folder / manifest.NAME, content)


def store(folder: Path, name: str, arrays: Mapping[str, np.ndarray], task: str) -> dict[str, Any]:
    """Write an adapter's file into a `locked` bank, and return its entry for the manifest.

    Args:
        folder: Folder of the bank.
        name: Name of the adapter.
        arrays: Result of `BankLayout.arrays`.
        task: Its task, as JSON.

    Raises:
        UsageError: The name is not a valid file name.
    """
    staged = folder / manifest.ADAPTERS / f".{os.getpid()}.partial"
    write_tensors(staged, arrays, {TASK: task})
    entry = manifest.describe(staged)
    os.replace(staged, folder / manifest.adapter_file(name, entry["sha256"]))
    return {**entry, "prompt_lookup": False}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the manifest of a bank that is locked against other processes; then delete files that it does not name."""
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
    """Return the names of a graph's inputs that belong to adapters."""
    return [entry.name for entry in onnx.load(graph, load_external_data=False).graph.input if entry.name in values]

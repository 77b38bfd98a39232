"""Export a bank (one base and many adapters in one bundle), add adapters to it, and remove them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from lora_ft.core.errors import BaseMismatchUsageError, UsageError
from lora_ft.core.files import folder_size
from lora_ft.core.hardware import torch_threads
from lora_ft.core.output_paths import making
from lora_ft.core.progress import Progress, Silent
from lora_ft.core.sample_prompts import SENTENCES
from lora_ft.deployment.bank_adapter import PeftReference, VerificationSettings, named_runs, prepare_bank_adapter
from lora_ft.deployment.torch_reference import bundle_metadata, references_of
from lora_ft.export.bundle.assemble import read_model, rescaled
from lora_ft.export.bundle.bank import BankLayout, add_adapter, remove_adapter
from lora_ft.export.bundle.publish import base_hash, write_bank
from lora_ft.export.bundle.source import ExportSource
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.checkpoint.generation_config import read_generation
from lora_ft.export.checkpoint.reader import Checkpoint
from lora_ft.export.onnx.smoothquant import Sample
from lora_ft.export.parity import Report
from lora_ft.export.precision import parse
from lora_ft.export.runtime import manifest
from lora_ft.export.runtime.session import choose_provider
from lora_ft.models.bases import Base
from lora_ft.models.checkpoints import is_scaled
from lora_ft.models.peft_adapter import PeftAdapter, base_of, named_base
from lora_ft.runs.run import Run

_CALIBRATION_ROWS = 64  # for the base; each adapter also has its own rows


@dataclass(frozen=True)
class BankResult:
    """The result of exporting or changing a bank.

    Attributes:
        out: Folder of the bank.
        precision: Precision of its base.
        bytes: Size, including adapters.
        reports: Comparison of each new adapter with PyTorch, by name.
    """

    out: Path
    precision: str
    bytes: int
    reports: dict[str, Report]


def export_bank(
    runs: Sequence[str],
    out: Path,
    *,
    base: str | None = None,
    precision: str = "fp32",
    checks: VerificationSettings | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BankResult:
    """Export a bank of the runs' base and adapters, after comparing each with PyTorch.

    Args:
        runs: Folders, or NAME=FOLDER. Default name: that of a run's task, or of an adapter's folder.
        out: Folder to create.
        base: Base to use. Default: the base that runs and adapters name.
        precision: Precision of the base.
        checks: Settings of the comparison.
        overwrite: Replace `out` if it exists.
        progress: Receives stages and notes.

    Raises:
        UsageError: `out` exists, a bank cannot store an adapter, or runs have different bases.
        LoraFtError: The base or an adapter differs from PyTorch, or loses too much quality. Nothing is written then.
    """
    progress, checks = progress or Silent(), checks or VerificationSettings()
    adapters = named_runs(runs)
    inputs = [path for run in adapters.values() for path in (run.folder, named_base(run))]
    with making(out, overwrite=overwrite, inputs=inputs):
        if precision == "auto":
            raise UsageError(
                "--precision auto is not supported for banks",
                "export one of the runs with auto, and name the precision that it chooses",
            )
        bank_precision = parse(precision)
        choose_provider("auto", str(bank_precision))
        torch.set_num_threads(torch_threads())
        bank_base = _common_base(adapters, base)
        reference = PeftReference(bank_base)
        bank_adapters = [prepare_bank_adapter(name, run, reference, checks, progress) for name, run in adapters.items()]
        tokenizer = reference.tokenizer
        metadata = bundle_metadata(None, bank_base.name, "", read_generation(bank_base.folder).options)
        sentences = list(references_of(reference.plain(), tokenizer, SENTENCES, metadata, progress))
        share = -(-_CALIBRATION_ROWS // len(bank_adapters))
        samples: list[Sample] = [sample for adapter in bank_adapters for sample in adapter.samples[:share]]
        scaled = is_scaled(reference.plain())
        source = ExportSource(bank_base.folder, tokenizer, metadata, sentences, sentences[0], samples, scaled)
        reports = write_bank(
            source, bank_adapters, out, precision=bank_precision, overwrite=overwrite, progress=progress.stage
        )
        return BankResult(out, str(bank_precision), folder_size(out), reports)


def add(
    bank: Path,
    runs: Sequence[str],
    *,
    base: str | None = None,
    checks: VerificationSettings | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BankResult:
    """Add runs' adapters to a bank, one after another, without changing its base.

    For the arguments, see `export_bank`.

    Raises:
        UsageError: The folder is not a bank, a name already exists, a base differs, or an adapter does not fit.
        LoraFtError: An adapter differs from PyTorch, or loses too much quality. Adapters before it stay in the bank.
    """
    progress, checks = progress or Silent(), checks or VerificationSettings()
    content, bank_layout, adapters = manifest.read_manifest(bank), BankLayout.read(bank), named_runs(runs)
    torch.set_num_threads(torch_threads())
    reports = {}
    hash_of, open_base = cache(base_hash), cache(_open_base)  # all runs have the bank's base, so it is opened once
    for name, run in adapters.items():
        run_base = base_of(run, base)
        if hash_of(run_base.folder) != bank_layout.base:
            raise BaseMismatchUsageError(
                f"{name} was trained on {run_base.name}, whose weights differ from this bank's base "
                f"({content['base']})",
                "create a bank for its base with `lora-ft export --adapters`",
            )
        reference, architecture, weights = open_base(run_base)
        adapter = prepare_bank_adapter(name, run, reference, checks, progress)
        progress.stage(f"adding {name}")
        reports[name] = add_adapter(bank, adapter, architecture, weights, overwrite=overwrite)
    return BankResult(bank, content["precision"], folder_size(bank), reports)


def remove(bank: Path, names: Iterable[str]) -> None:
    """Remove adapters from a bank.

    Raises:
        UsageError: The folder is not a bank, or lacks an adapter with one of the names. It stays unchanged then.
    """
    remove_adapter(bank, names)


def _open_base(base: Base) -> tuple[PeftReference, Architecture, Checkpoint]:
    """Return a base in PyTorch, with its architecture and weights for banks."""
    reference = PeftReference(base)
    architecture, weights = read_model(base.folder)
    return reference, rescaled(architecture, is_scaled(reference.plain())), weights


def _common_base(runs: dict[str, Run | PeftAdapter], named: str | None) -> Base:
    """Return the base `named`, or else the base that all runs were trained on.

    Raises:
        UsageError: Runs have different bases.
    """
    bases = {name: base_of(run, named) for name, run in runs.items()}
    folders = {folder: base_hash(folder) for folder in {base.folder for base in bases.values()}}
    (first, first_base), *remaining = bases.items()
    for name, base in remaining:
        if folders[base.folder] != folders[first_base.folder]:
            raise BaseMismatchUsageError(
                f"{first} and {name} were trained on different bases: {first_base.name} and {base.name}",
                "create a bank for each base",
            )
    return first_base

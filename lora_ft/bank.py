"""Export a bank (one base and many adapters in one bundle), add adapters to it, and remove them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from lora_ft.core.errors import BaseMismatchUsageError, UsageError
from lora_ft.core.files import folder_size
from lora_ft.core.hardware import allowed_cpus
from lora_ft.core.output_paths import making
from lora_ft.core.progress import Progress, Silent
from lora_ft.core.sample_prompts import SENTENCES
from lora_ft.deployment.bank_adapter import PeftReference, VerificationSettings, named_runs, prepare_bank_adapter
from lora_ft.deployment.torch_reference import bundle_metadata, references_of
from lora_ft.export.bundle.assemble import read_model, rescaled
from lora_ft.export.bundle.bank import BankLayout, add_adapter
from lora_ft.export.bundle.bank import remove_adapter as take_out
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
class Shelved:
    """Result of exporting or changing a bank.

    Attributes:
        out: Folder of the bank.
        precision: Precision of its base.
        bytes: Size, adapters included.
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
) -> Shelved:
    """Export a bank of the runs' base and adapters, after comparing each with PyTorch.

    Args:
        runs: Folders, or NAME=FOLDER. Default name: the task's.
        out: Folder to create.
        base: Base to use instead of the one that runs and adapters name.
        precision: Precision of the base.
        checks: Settings of the comparison.
        overwrite: Replace `out` if it exists.
        progress: Receives stages and notes.

    Raises:
        UsageError: `out` exists, a run has no adapter that a bank can hold, or runs have different bases.
        LoraFtError: The base or an adapter differs from PyTorch, or loses too much; nothing is left behind.
    """
    progress, checks = progress or Silent(), checks or VerificationSettings()
    found = named_runs(runs)
    inputs = [path for run in found.values() for path in (run.folder, named_base(run))]
    with making(out, overwrite=overwrite, inputs=inputs):
        if precision == "auto":
            raise UsageError("a bank has the precision that is named", "try auto on one of the runs first")
        chosen = parse(precision)
        choose_provider("auto", str(chosen))
        torch.set_num_threads(allowed_cpus())
        common = _common_base(found, base)
        oracle = PeftReference(common)
        members = [prepare_bank_adapter(name, run, oracle, checks, progress) for name, run in found.items()]
        tokenizer, origin = (
            oracle.tokenizer,
            bundle_metadata(None, common.name, "", read_generation(common.folder).options),
        )
        sentences = list(references_of(oracle.plain(), tokenizer, SENTENCES, origin, progress))
        share = -(-_CALIBRATION_ROWS // len(members))
        samples: list[Sample] = [sample for one in members for sample in one.samples[:share]]
        scaled = is_scaled(oracle.plain())
        source = ExportSource(common.folder, tokenizer, origin, sentences, sentences[0], samples, scaled)
        reports = write_bank(source, members, out, precision=chosen, overwrite=overwrite, progress=progress.stage)
        return Shelved(out, str(chosen), folder_size(out), reports)


def add(
    bank: Path,
    runs: Sequence[str],
    *,
    base: str | None = None,
    checks: VerificationSettings | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Shelved:
    """Add runs' adapters to a bank, one after another, without touching its base.

    See `export_bank` for the arguments.

    Raises:
        UsageError: The folder is not a bank, a name is taken, a base differs, or an adapter does not fit.
        LoraFtError: An adapter differs from PyTorch or loses too much; earlier ones stay.
    """
    progress, checks = progress or Silent(), checks or VerificationSettings()
    content, room, found = manifest.read_manifest(bank), BankLayout.read(bank), named_runs(runs)
    torch.set_num_threads(allowed_cpus())
    reports = {}
    hash_of, opened = cache(base_hash), cache(_opened)  # all runs have the bank's base, so it is opened once
    for name, run in found.items():
        own = base_of(run, base)
        if hash_of(own.folder) != room.base:
            raise BaseMismatchUsageError(
                f"{name} was trained on {own.name}, whose weights are not those of this bank's base "
                f"({content['base']})",
                "make another bank for it with `lora-ft export --adapters`",
            )
        oracle, architecture, weights = opened(own)
        member = prepare_bank_adapter(name, run, oracle, checks, progress)
        progress.stage(f"adding {name}")
        reports[name] = add_adapter(bank, member, architecture, weights, overwrite=overwrite)
    return Shelved(bank, content["precision"], folder_size(bank), reports)


def remove(bank: Path, names: Iterable[str]) -> None:
    """Remove adapters from a bank.

    Raises:
        UsageError: The folder is not a bank, or has no adapter of some name; then it stays unchanged.
    """
    take_out(bank, names)


def _opened(base: Base) -> tuple[PeftReference, Architecture, Checkpoint]:
    """Return a base in PyTorch, and its architecture and weights for banks."""
    oracle = PeftReference(base)
    architecture, weights = read_model(base.folder)
    return oracle, rescaled(architecture, is_scaled(oracle.plain())), weights


def _common_base(runs: dict[str, Run | PeftAdapter], named: str | None) -> Base:
    """Return the base that all runs were trained on, or the named one.

    Raises:
        UsageError: Runs have different bases.
    """
    bases = {name: base_of(run, named) for name, run in runs.items()}
    folders = {folder: base_hash(folder) for folder in {base.folder for base in bases.values()}}
    (first, chosen), *others = bases.items()
    for name, base in others:
        if folders[base.folder] != folders[chosen.folder]:
            raise BaseMismatchUsageError(
                f"{first} and {name} were trained on different bases: {chosen.name} and {base.name}",
                "make a bank for each base",
            )
    return chosen

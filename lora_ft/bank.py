"""The jobs on a bank: one base and many adapters in one bundle, made, added to, and taken from."""

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

_CALIBRATION_ROWS = 64  # of the base; each adapter has its own besides


@dataclass(frozen=True)
class Shelved:
    """What a job left.

    Attributes:
        out: the bank.
        precision: of its base.
        bytes: its size, with its adapters.
        reports: how each adapter that was put in compares with PyTorch, by name.
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
    """Make a bank of the runs' base and their adapters; each is compared with PyTorch before any of it is published.

    Args:
        runs: folders, or NAME=FOLDER; by default an adapter has its task's name.
        out: folder to make.
        base: instead of the one that the runs and adapters name.
        precision: of the base, by name.
        checks: how adapters are compared.
        overwrite: replace `out` where it exists.
        progress: told what happens.

    Raises:
        UsageError: `out` is taken, a run has no adapter that a bank can hold, or they are of several bases.
        LoraFtError: the base or an adapter differs from PyTorch, or loses too much; nothing is left behind.
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
    """Put more runs' adapters into a bank, one after another; its base is not touched.

    Arguments as of `export_bank`.

    Raises:
        UsageError: no bank, a name that is taken, another base, an adapter that does not fit.
        LoraFtError: an adapter differs from PyTorch or loses too much; those before it stay.
    """
    progress, checks = progress or Silent(), checks or VerificationSettings()
    content, room, found = manifest.read_manifest(bank), BankLayout.read(bank), named_runs(runs)
    torch.set_num_threads(allowed_cpus())
    reports = {}
    hash_of, opened = cache(base_hash), cache(_opened)  # runs have the base of the bank, so there is one to open
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
    """Take adapters out of a bank.

    Raises:
        UsageError: no bank, or it has none of some name; then it stays as it was.
    """
    take_out(bank, names)


def _opened(base: Base) -> tuple[PeftReference, Architecture, Checkpoint]:
    """A base in PyTorch, and as banks are built from it."""
    oracle = PeftReference(base)
    architecture, weights = read_model(base.folder)
    return oracle, rescaled(architecture, is_scaled(oracle.plain())), weights


def _common_base(runs: dict[str, Run | PeftAdapter], named: str | None) -> Base:
    """The base that all runs were trained on, or the one that is named.

    Raises:
        UsageError: there are several.
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

"""Publish a bundle or a bank: build it in fp32 and in other precisions, compare with PyTorch, seal one candidate.

fp32 is always built, because only in fp32 do correct graphs generate exactly PyTorch's tokens: this proves the graphs.
The loss of every other precision is measured against fp32 and judged by `Selection.choose`. A bank is a bundle whose
graphs also accept adapters. Its adapters are added one by one to the finished folder. Everything is built in a staging
folder next to `out`, and then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_ft.core.files import folder_size, sha256, staged_folder
from lora_ft.core.output_paths import refuse_existing
from lora_ft.export.bundle.adapter_slots import AdapterSlots, MergedWeights, adapted, ranks_of
from lora_ft.export.bundle.assemble import assemble, seal
from lora_ft.export.bundle.bank import BankAdapter, BankLayout, add_adapter
from lora_ft.export.bundle.provenance import properties, stamp
from lora_ft.export.bundle.sbom import write_sbom
from lora_ft.export.bundle.source import ExportSource
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.checkpoint.reader import Checkpoint
from lora_ft.export.checkpoint.weight_files import weight_files
from lora_ft.export.layouts import check_layout, record_layout, write_layout
from lora_ft.export.layouts.triton import answer, write_triton
from lora_ft.export.onnx.lora import Group
from lora_ft.export.onnx.model_parts import ModelParts, Weights
from lora_ft.export.onnx.quantization import formats_of
from lora_ft.export.onnx.smoothquant import Calibration, Fold, Folded, calibrate, joined
from lora_ft.export.parity import Probe, Reference, Report, compare, require
from lora_ft.export.precision import FP32, Precision
from lora_ft.export.runtime import manifest
from lora_ft.export.runtime.generator import Generator

Progress = Callable[[str], None]  # called with the name of each stage as it begins
_UNFOLDED = Fold({}, {}, {})


@dataclass(frozen=True)
class Candidate:
    """A bundle that could be published.

    Attributes:
        precision: Precision of its weights.
        parts: Parts of the model that its graphs were built from.
        generator: The loaded bundle.
        report: Comparison with PyTorch. In fp32 it has passed.
        bytes: Size of the bundle, in bytes.
    """

    precision: Precision
    parts: ModelParts
    generator: Generator
    report: Report
    bytes: int


@dataclass(frozen=True)
class Published:
    """The precision that was published, and its comparison with PyTorch."""

    precision: Precision
    report: Report


# all candidates, fp32 first -> (candidate to publish, entries for the manifest that explain the choice)
Choose = Callable[[Sequence[Candidate]], tuple[Candidate, Mapping[str, Any]]]


def take_last(candidates: Sequence[Candidate]) -> tuple[Candidate, Mapping[str, Any]]:
    """Return the last candidate, without judging it."""
    return candidates[-1], {}


@dataclass(frozen=True)
class Selection:
    """Precisions to try, and a function that selects one.

    Attributes:
        precisions: Precisions to build besides fp32.
        choose: Returns the candidate to publish, or raises LoraFtError if no candidate is good enough.
    """

    precisions: Sequence[Precision] = ()
    choose: Choose = take_last


FP32_ALONE = Selection()


def write_bundle(
    source: ExportSource,
    out: Path,
    *,
    selection: Selection = FP32_ALONE,
    layout: str = "bundle",
    triton: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda stage: None,
) -> Published:
    """Build the bundle of a checkpoint in several precisions, compare each with PyTorch and publish one.

    Args:
        source: The checkpoint and PyTorch's answers.
        out: Folder to create.
        selection: Precisions to build, and the function that selects one.
        layout: "bundle", or a name of `lora_ft.export.layouts.LAYOUTS`.
        triton: Also write a Triton model repository around the layout "single".
        overwrite: Replace `out` if it exists.
        progress: Called with the name of each stage.

    Raises:
        UsageError: `out` exists, or the model family is not supported.
        LoraFtError: The fp32 graphs differ from PyTorch, or no candidate was selected. `out` is unchanged.
    """
    with _building(source, out, overwrite, progress) as (builder, staging):
        candidate, reasons = selection.choose(builder.candidates(selection.precisions))
        if layout == "bundle":
            builder.seal(candidate, staging, reasons)
        else:
            progress(f"writing the layout {layout}")
            content = {**builder.manifest_of(candidate), **reasons}
            layout_record = write_layout(
                layout, staging, candidate.parts, candidate.generator, source.checkpoint, builder.references
            )
            if triton:
                limit = source.metadata.generation["max_new_tokens"]
                repository = write_triton(staging, out.name, candidate.parts.portable(), limit)
                check_layout("triton", repository, [answer], candidate.generator, builder.references)
            stamp(staging, properties(source.metadata.provenance, content))
            write_sbom(staging, builder.architecture.family.NAME, source.metadata.provenance, content)
            record_layout(staging, content | layout_record)
    return Published(candidate.precision, candidate.report)


def write_bank(
    source: ExportSource,
    adapters: Sequence[BankAdapter],
    out: Path,
    *,
    precision: Precision = FP32,
    overwrite: bool = False,
    progress: Progress = lambda stage: None,
) -> dict[str, Report]:
    """Build a bank, compare the base and every adapter with PyTorch, and publish it.

    Args:
        source: The base and PyTorch's answers without an adapter.
        adapters: Adapters to add. Their layers and ranks determine the bank's slots.
        out: Folder to create.
        precision: Precision of the base. Adapters of layers with integer weights are stored as bytes.
        overwrite: Replace `out` if it exists.
        progress: Called with the name of each stage.

    Returns:
        Comparison of each adapter with PyTorch, by name.

    Raises:
        UsageError: `out` exists, the model family is not supported, or two adapters have the same name.
        LoraFtError: The base or an adapter differs from PyTorch. `out` is unchanged.
    """
    with _building(source, out, overwrite, progress, adapters) as (builder, staging):
        *_, candidate = builder.candidates([precision])
        builder.seal(candidate, staging, {manifest.ADAPTERS: {}})
        reports = {}
        for adapter in adapters:
            progress(f"adding {adapter.name}")
            reports[adapter.name] = add_adapter(staging, adapter, builder.architecture, builder.weights)
    return reports


def base_hash(checkpoint: Path) -> str:
    """Return the hash of a base's weights, which matches adapters with banks."""
    digests = [sha256(file) for file in weight_files(checkpoint)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@contextlib.contextmanager
def _building(
    source: ExportSource,
    out: Path,
    overwrite: bool,
    progress: Progress,
    adapters: Sequence[BankAdapter] | None = None,
) -> Iterator[tuple[_Builder, Path]]:
    """Yield a builder and a folder that becomes `out` unless an error is raised."""
    refuse_existing(out, overwrite=overwrite)
    architecture, weights = source.read()
    with staged_folder(out, overwrite=overwrite) as staging, tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        references, probe = list(source.references), Probe.of(source.probe, architecture.special)
        yield _Builder(source, Path(scratch), architecture, weights, references, probe, progress, adapters), staging


@dataclass(frozen=True)
class _Builder:
    """Builds one model in several precisions and compares each with PyTorch.

    Attributes:
        source: The model.
        scratch: Folder with one subfolder per precision.
        architecture, weights, references, probe: Content of `source`, already read.
        progress: Called with the name of each stage.
        adapters: Adapters of a bank, which determine its slots. None for a bundle.
    """

    source: ExportSource
    scratch: Path
    architecture: Architecture
    weights: Checkpoint
    references: Sequence[Reference]
    probe: Probe
    progress: Progress
    adapters: Sequence[BankAdapter] | None

    def candidates(self, precisions: Sequence[Precision]) -> list[Candidate]:
        """Return the model in fp32, which must equal PyTorch's, and in every other precision."""
        candidates = [self._build(FP32, self.weights, _UNFOLDED)]
        require(candidates[0].report)
        require(self.probe.check(candidates[0].generator))
        if rounded := [precision for precision in dict.fromkeys(precisions) if precision != FP32]:
            self.progress("calibrating")
            formats = [formats_of(precision, self.architecture.family) for precision in rounded]
            calibration = self._calibrate(lambda layer: any(format_of(layer).compensates for format_of in formats))
            for precision, storage in zip(rounded, formats, strict=True):
                weights = Folded(self.architecture, self.weights, calibration, storage)
                candidates.append(self._build(precision, weights, weights.fold))
        return candidates

    def manifest_of(self, candidate: Candidate) -> dict[str, Any]:
        """Return the manifest of a candidate, with its comparisons."""
        probe = self.probe.check(candidate.generator)
        return {**candidate.generator.manifest, "parity": candidate.report.as_dict(), "probe": probe.as_dict()}

    def seal(self, candidate: Candidate, staging: Path, more: Mapping[str, Any]) -> None:
        """Copy a candidate to `staging` and write its manifest, with additional entries."""
        self.probe.write(candidate.generator.folder / manifest.PROBE)
        seal(
            candidate.generator.folder,
            {**self.manifest_of(candidate), **more},
            staging,
            family=self.architecture.family.NAME,
            prompt_lookup=bool(candidate.precision.independent) and candidate.report.lookup_is_lossless,
            provenance=self.source.metadata.provenance,
        )

    @cached_property
    def _base_hash(self) -> str:
        return base_hash(self.source.checkpoint)

    def _calibrate(self, moments: Callable[[str], bool]) -> Calibration:
        calibrations = [calibrate(self.architecture, self.weights, self.source.samples, moments)]
        # with an adapter, activations on the rows of its task may be larger than the base's on any row
        for adapter in self.adapters or ():
            weights = MergedWeights(self.weights, adapter.weights)
            calibrations.append(calibrate(self.architecture, weights, adapter.samples, moments))
        return joined(calibrations)

    def _build(self, precision: Precision, weights: Weights, fold: Fold) -> Candidate:
        self.progress(f"building {precision}")
        folder = self.scratch / str(precision)
        folder.mkdir()
        family, with_adapters = self.architecture.family, None
        formats = formats_of(precision, family)
        parts = family.graph_parts(self.architecture, weights, formats)
        groups: dict[str, Group] = {}  # filled as the graphs are built
        ranks = ranks_of(adapter.weights for adapter in self.adapters or ())
        if self.adapters is not None:
            with_adapters = family.graph_parts(self.architecture, weights, adapted(formats, ranks, groups))
        config, tokenizer = self.weights.config, self.source.tokenizer
        generator = assemble(folder, parts, str(precision), config, tokenizer, self.source.metadata, with_adapters)
        if self.adapters is not None:
            BankLayout(AdapterSlots(ranks, groups), fold, self._base_hash).write(folder)
        self.progress(f"comparing {precision}")
        return Candidate(precision, parts, generator, compare(generator, self.references), folder_size(folder))

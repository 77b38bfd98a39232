"""A model built in one or several precisions and compared with PyTorch; one of them is published, or none."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.core.files import folder_size, staged_folder
from lora_ft.core.output_paths import refuse_existing
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.bundle.assemble import BundleMetadata, assemble, read_model, rescaled, seal
from lora_ft.export.bundle.provenance import properties, stamp
from lora_ft.export.bundle.sbom import write_sbom
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.checkpoint.reader import Checkpoint
from lora_ft.export.layouts import check_layout, record_layout, write_layout
from lora_ft.export.layouts.triton import answer, write_triton
from lora_ft.export.onnx.precision import FP32, Precision
from lora_ft.export.onnx.smoothquant import Folded, Sample, calibrate
from lora_ft.export.onnx.t5 import T5, Weights
from lora_ft.export.parity import Probe, Reference, Report, compare, require
from lora_ft.export.runtime import manifest
from lora_ft.export.runtime.generator import Generator


@dataclass(frozen=True)
class Candidate:
    """A bundle that could be published.

    Attributes:
        precision: of it.
        t5: the model as its graphs were built from it.
        generator: to try it with.
        report: how it compares with PyTorch; of fp32, a comparison that passed.
        bytes: its size.
    """

    precision: Precision
    t5: T5
    generator: Generator
    report: Report
    bytes: int


@dataclass(frozen=True)
class Published:
    """What was published: its precision, and how it compares with PyTorch."""

    precision: Precision
    report: Report


# From all candidates, fp32 first: the one to publish, and what to say in the manifest of how it was chosen.
Choose = Callable[[Sequence[Candidate]], tuple[Candidate, Mapping[str, Any]]]


def take_last(candidates: Sequence[Candidate]) -> tuple[Candidate, Mapping[str, Any]]:
    """The last candidate, unjudged."""
    return candidates[-1], {}


def write_bundle(
    checkpoint: Path,
    tokenizer: Tokenizer,
    origin: BundleMetadata,
    references: Iterable[Reference],
    probe: Reference,
    out: Path,
    *,
    layout: str = "bundle",
    triton: bool = False,
    scaled: bool | None = None,
    precisions: Sequence[Precision] = (FP32,),
    samples: Iterable[Sample] = (),
    choose: Choose = take_last,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> Published:
    """Build the bundle of a checkpoint in some precisions, compare all with PyTorch and publish one.

    Args:
        checkpoint: transformers folder (config.json, *.safetensors).
        tokenizer: the one its prompts are encoded with.
        origin: what to say of it, and its prompt.
        references: PyTorch's answers on rows of the task.
        probe: and on sentences that may travel with the bundle, for `lora-ft verify`.
        out: folder to make.
        layout: "bundle", or one of `lora_ft.export.layouts`.
        triton: around the layout "single", also write a Triton model repository.
        scaled: whether PyTorch scales the hidden state before the head; by default what config.json says.
        precisions: to build besides fp32, which is always built, as it proves the graphs.
        samples: rows to calibrate precisions with that round.
        choose: picks the one to publish, or raises LoraFtError to publish none.
        overwrite: replace `out` where it exists.
        progress: told the name of each stage as it begins.

    Raises:
        UsageError: `out` exists, or the checkpoint is no T5.
        LoraFtError: the fp32 graphs differ from PyTorch, or none was chosen; nothing is left behind.
    """
    refuse_existing(out, overwrite=overwrite)
    architecture, weights = read_model(checkpoint)
    if scaled is not None:
        architecture = rescaled(architecture, scaled)
    with staged_folder(out, overwrite=overwrite) as staging, tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        build = _Builder(Path(scratch), architecture, weights, tokenizer, origin, list(references), progress)
        candidates = [build(FP32, weights)]
        kept = Probe.of(probe, architecture.special)
        require(candidates[0].report)
        require(kept.check(candidates[0].generator))
        if rounded := [precision for precision in dict.fromkeys(precisions) if precision != FP32]:
            progress("calibrating")
            wanted = lambda layer: any(precision.storage(layer).compensates for precision in rounded)  # noqa: E731
            calibration = calibrate(architecture, weights, samples, wanted)
            for precision in rounded:
                candidates.append(build(precision, Folded(architecture, weights, calibration, precision.storage)))
        chosen, why = choose(candidates)
        kept.write(chosen.generator.folder / manifest.PROBE)
        found = {"parity": chosen.report.as_dict(), "probe": kept.check(chosen.generator).as_dict()}
        content = {**chosen.generator.manifest, **found, **why}
        if layout == "bundle":
            seal(
                chosen.generator.folder,
                content,
                staging,
                prompt_lookup=chosen.precision.exact and chosen.report.lookup_is_lossless,
                provenance=origin.provenance,
            )
        else:
            progress(f"writing the layout {layout}")
            own = write_layout(layout, staging, chosen.t5, chosen.generator, checkpoint, build.references)
            if triton:
                limit = origin.generation["max_new_tokens"]
                repository = write_triton(staging, out.name, chosen.t5.portable(), limit)
                check_layout("triton", repository, [answer], chosen.generator, build.references)
            stamp(staging, properties(origin.provenance, content))
            write_sbom(staging, origin.provenance, content)
            record_layout(staging, content | own)
    return Published(chosen.precision, chosen.report)


@dataclass(frozen=True)
class _Builder:
    """Assembles one model in a folder for each precision and compares it."""

    scratch: Path
    architecture: Architecture
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    origin: BundleMetadata
    references: Sequence[Reference]
    progress: Callable[[str], None]

    def __call__(self, precision: Precision, weights: Weights) -> Candidate:
        self.progress(f"building {precision}")
        folder = self.scratch / str(precision)
        folder.mkdir()
        config = self.checkpoint.config
        t5 = T5(self.architecture, weights, precision.storage)
        generator = assemble(folder, t5, str(precision), config, self.tokenizer, self.origin)
        self.progress(f"comparing {precision}")
        return Candidate(precision, t5, generator, compare(generator, self.references), folder_size(folder))

"""The verb `export_onnx`: export a run or a checkpoint as a bundle, and compare it with PyTorch."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_ft.core.errors import UsageError
from lora_ft.core.files import folder_size, read_json, write_text
from lora_ft.core.hardware import torch_threads
from lora_ft.core.output_paths import making, refuse_existing
from lora_ft.core.plain import plain_fields
from lora_ft.core.progress import Progress, Silent
from lora_ft.core.sample_prompts import SENTENCES
from lora_ft.data.splits import Example
from lora_ft.deployment.precision_search import PrecisionSelector, Tradeoff
from lora_ft.deployment.quality_gate import QualityGate
from lora_ft.deployment.torch_reference import (
    bundle_metadata,
    codec_of,
    examples_of,
    phrases_of,
    references_of,
    samples_of,
    scores_of,
)
from lora_ft.export.bundle.assemble import BundleMetadata
from lora_ft.export.bundle.publish import Selection, take_last, write_bundle
from lora_ft.export.bundle.source import ExportSource
from lora_ft.export.layouts import LAYOUTS, differences, unsupported
from lora_ft.export.parity import Report, compare
from lora_ft.export.precision import FP32, candidates, parse
from lora_ft.export.runtime import Generator, manifest
from lora_ft.export.runtime.session import choose_provider
from lora_ft.models.bases import find_base, load_model, load_tokenizer
from lora_ft.models.checkpoints import MERGE, is_scaled, save_checkpoint
from lora_ft.models.generation import model_generation
from lora_ft.models.merging import merge_in_memory
from lora_ft.models.peft_adapter import holds_adapter, name_of, open_adapter
from lora_ft.publishing.model_card import Facts, bundle_card, checkpoint_facts, run_facts
from lora_ft.runs.run import CARD, TASK, Run, is_run
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import SplitName, Task

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

AUTO = "auto"


@dataclass(frozen=True)
class Exported:
    """The result of `export_onnx`.

    Attributes:
        out: Folder of the export.
        precision: Precision of its weights.
        parity: Comparison with PyTorch.
        bytes: Size of the folder.
        tradeoff: Size, speed and score of each precision that was tried.
        max_drop: Largest allowed loss of score, in points.
    """

    out: Path
    precision: str
    parity: Report
    bytes: int
    tradeoff: Sequence[Tradeoff] = ()
    max_drop: float = 0.0

    def __str__(self) -> str:
        return f"{self.out} ({self.precision}, {self.bytes / 1e6:.1f} MB): {self.parity}"

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the types of JSON."""
        return plain_fields(self)


def export_onnx(
    name: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | None = None,
    precision: str = "fp32",
    max_drop: float = 0.5,
    score_rows: int = 200,
    force: bool = False,
    layout: str = "bundle",
    triton: bool = False,
    drafts: bool = False,
    verify_rows: int = 16,
    verify_split: SplitName = "validation",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Export a model and verify the result before it is published.

    Args:
        name: Run, adapter, checkpoint or base.
        out: Folder to create.
        base: Base to use. Default: the base that a run or an adapter names.
        precision: A name or a mixture (see `lora_ft.export.precision`), or "auto" for the fastest precision that passes
            the quality gate.
        max_drop: Points that the task's metric may lose against fp32.
        score_rows: Number of rows of the task to score a rounded precision on.
        force: Publish despite a larger loss, or in a layout that lacks some of the task's generation settings. The
            manifest and the card record it.
        layout: "bundle", or a name of `lora_ft.export.layouts.LAYOUTS`.
        triton: Also write a Triton model repository of the layout "single".
        drafts: Let the bundle contain phrases that several training answers share, so that it answers in less time.
        verify_rows: Number of rows of the task to compare with PyTorch.
        verify_split: Split of these rows.
        overwrite: Replace `out` if it exists.
        progress: Receives stages and notes.

    Raises:
        UsageError: `out` exists, the model family is not supported, or the precision is unknown.
        LoraFtError: The ONNX graphs differ from PyTorch, or lose too much quality. Nothing is written then.
    """
    progress, name, out = progress or Silent(), os.fspath(name), Path(out)
    refuse_existing(out, overwrite=overwrite, inputs=[name])
    if layout not in ("bundle", *LAYOUTS):
        raise UsageError(f"the layout is unknown (got {layout!r})", f"use one of bundle, {', '.join(LAYOUTS)}")
    if triton and layout != "single":
        raise UsageError("a Triton repository needs the layout single", "add --layout single")
    if drafts and layout != "bundle":
        raise UsageError("--drafts requires --layout bundle", "leave out --drafts")
    precisions = candidates(choose_provider("auto")) if precision == AUTO else [parse(precision)]
    for candidate in precisions:
        choose_provider("auto", str(candidate))  # the comparison with PyTorch runs it on this machine
    torch.set_num_threads(torch_threads())
    with (
        making(out, overwrite=overwrite, inputs=[name]),
        _open_model(name, progress, base) as (folder, model, task, origin),
    ):
        tokenizer, facts = load_tokenizer(folder, codec_of(task)), _facts(name, folder)
        start = model_generation(model).special.start
        if drafts:
            origin = replace(origin, phrases=phrases_of(task, tokenizer, start))
        if facts:
            origin = replace(origin, provenance=replace(origin.provenance, scores=scores_of(facts)))
        if layout != "bundle":
            _check_layout(layout, origin, codec_of(task), force, progress)
        examples = examples_of(task, verify_split, progress)
        prompts = [example.prompt for example in examples[:verify_rows]] or SENTENCES
        judge = None
        if precisions != [FP32]:
            judge = _judge(task, examples[:score_rows], precision, max_drop, force, progress)
            if judge and precision == AUTO and verify_split == "test":
                progress.note("warning: test rows choose the precision, so its scores on them are inflated")
        source = ExportSource(
            folder,
            tokenizer,
            origin,
            references=references_of(model, tokenizer, prompts, origin, progress),
            probe=next(references_of(model, tokenizer, SENTENCES, origin, progress)),
            samples=samples_of(task, tokenizer, start, progress),
            scaled=is_scaled(model),
        )
        published = write_bundle(
            source,
            out,
            selection=Selection(precisions, judge or take_last),
            layout=layout,
            triton=triton,
            overwrite=overwrite,
            progress=progress.stage,
        )
        record = read_json(out / (manifest.NAME if layout == "bundle" else manifest.LAYOUT_RECORD))
        write_text(out / CARD, bundle_card(facts, record, layout))
    table = judge.table if judge else ()
    return Exported(out, str(published.precision), published.report, folder_size(out), table, max_drop)


@contextlib.contextmanager
def _open_model(
    name: str, progress: Progress, named: str | None = None
) -> Iterator[tuple[Path, T5ForConditionalGeneration, Task | None, BundleMetadata]]:
    """Yield (checkpoint, model, task, metadata) of a run, an adapter, a checkpoint or a base, on the base `named`."""
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        if holds_adapter(Path(name)):
            run = open_adapter(name)
            merged = merge_in_memory(run, base=named, progress=progress)
            model, folder = merged.model, Path(scratch)
            task: Task | None = run.task
            save_checkpoint(model, merged.base.folder, folder, merged.extended)
            base, adapter = merged.base.name, name_of(run)
        elif named is not None:
            raise UsageError(f"--base is set, but {name} has no adapter", "leave out --base")
        else:
            checkpoint_base = find_base(name)
            folder, model = checkpoint_base.folder, load_model(checkpoint_base.folder)
            task = load_task(folder / TASK) if (folder / TASK).is_file() else None
            base, adapter = _merged_from(folder, checkpoint_base.name)
        yield folder, model, task, bundle_metadata(task, base, adapter, model_generation(model).options)


def _check_layout(layout: str, origin: BundleMetadata, codec: str, force: bool, progress: Progress) -> None:
    """Raise UsageError if a layout lacks generation settings of the task or its base. Note other differences."""
    missing = ", ".join(f"{key} = {value!r}" for key, value in unsupported(layout, origin.generation).items())
    if missing and not force:
        raise UsageError(
            f"the layout {layout} does not support {missing}, which the task or its base sets",
            "export another layout, set the default in the task's `generate`, or pass --force to leave it out",
        )
    for line in differences(layout, origin.generation, origin.labels, codec):
        progress.note(f"the layout {layout} differs from bundles: {line}")


def _facts(name: str, folder: Path) -> Facts | None:
    """Return facts about the training of a run or a merged checkpoint for the card."""
    return run_facts(Run(name)) if is_run(Path(name)) else checkpoint_facts(folder)


def compare_again(
    bundle: Path,
    name: str,
    *,
    adapter: str | None = None,
    rows: int = 16,
    split: SplitName = "validation",
    progress: Progress | None = None,
) -> Report:
    """Compare a bundle with PyTorch again on rows of its model's task.

    Args:
        bundle: Folder of the bundle.
        name: Run, checkpoint or base that it was exported from.
        adapter: Adapter of a bank to compare. Default: the base.
        rows: Number of rows.
        split: Split of these rows.
        progress: Receives stages and notes.

    Raises:
        UsageError: The bundle has no such adapter, or the model does not exist.
    """
    progress = progress or Silent()
    generator = Generator.load(bundle)
    generator.of(adapter)
    torch.set_num_threads(torch_threads())
    with _open_model(name, progress) as (folder, model, task, origin):
        prompts = [example.prompt for example in examples_of(task, split, progress)[:rows]] or SENTENCES
        references = references_of(model, load_tokenizer(folder, codec_of(task)), prompts, origin, progress)
        return compare(generator, references, adapter=adapter)


def _judge(
    task: Task | None, examples: Sequence[Example], precision: str, max_drop: float, force: bool, progress: Progress
) -> PrecisionSelector | None:
    """Return the selector of rounded precisions, or None without rows to score."""
    if task is not None and examples:
        return PrecisionSelector(QualityGate(task, examples, max_drop, force), progress)
    if precision == AUTO:
        raise UsageError("--precision auto needs rows of a task to score", "export a run, or name a precision")
    progress.note(f"there are no rows to score {precision} on, so its loss is unknown and its manifest has no gate")
    return None


def _merged_from(folder: Path, name: str) -> tuple[str, str]:
    """Return (base, adapter) of a checkpoint from the record of `merge`, or else (name, "")."""
    path = folder / MERGE
    if not path.is_file():
        return name, ""
    record: dict[str, Any] = read_json(path)
    return record["base"], record["adapter"]

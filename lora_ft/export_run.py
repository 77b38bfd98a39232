"""The job `export`: a run or a checkpoint in, a verified bundle out. The torch side of it; `export` does the rest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from export.bundle import Origin, write_bundle
from export.errors import LoraFtError, UsageError
from export.files import folder_size, read_json, refuse_existing
from export.parity import Reference, Report
from export.runtime.cpu import allowed_cpus
from export.runtime.text import PAD, Tokenizer, by_length, pad
from lora_ft.bases import find_base, load_model, load_tokenizer
from lora_ft.checkpoint import save_checkpoint
from lora_ft.data import load_splits
from lora_ft.merge import MERGE, SENTENCES, merge_in_memory
from lora_ft.models import MAX_NEW_TOKENS, SOURCE_LENGTH
from lora_ft.progress import Progress, Silent
from lora_ft.runs import TASK, Run, is_run
from lora_ft.task import SplitName, Task
from lora_ft.taskfile import load_task

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

_BATCH = 8


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: the folder, how it compares with PyTorch, and its size in bytes."""

    out: Path
    parity: Report
    bytes: int


def export(
    name: str, out: Path, *, verify_rows: int = 16, verify_split: SplitName = "validation", overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:  # fmt: skip
    """Export a model and verify the result against PyTorch before it is published.

    Args:
        name: run, checkpoint or base.
        out: folder to make.
        verify_rows: how many rows of the task are compared.
        verify_split: the split they are taken from.
        overwrite: replace `out` where it exists.
        progress: told what happens.

    Raises:
        UsageError: `out` is taken, or the model is not a T5.
        LoraFtError: the ONNX graphs differ from PyTorch; nothing is left behind.
    """
    progress = progress or Silent()
    refuse_existing(out, overwrite=overwrite)
    torch.set_num_threads(allowed_cpus())
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        if is_run(Path(name)):
            run = Run(name)
            merged = merge_in_memory(run, progress=progress)
            model, folder = merged.model, Path(scratch)
            task: Task | None = run.task
            save_checkpoint(model, merged.base.folder, folder)
            base, adapter = merged.base.name, str(run.task.name)
        else:
            found = find_base(name)
            folder, model = found.folder, load_model(found.folder)
            task = load_task(folder / TASK) if (folder / TASK).is_file() else None
            base, adapter = _merged_from(folder, found.name)
        tokenizer = load_tokenizer(folder)
        origin = Origin(
            base=base,
            adapter=adapter,
            template=task.prompt if task else None,
            source_length=task.lengths.source if task else SOURCE_LENGTH,
            max_new_tokens=task.max_new_tokens if task else MAX_NEW_TOKENS,
            versions={package: version(package) for package in ("torch", "transformers", "peft")},
        )
        prompts = _prompts(task, verify_split, verify_rows, progress)
        references = _references(model, tokenizer, prompts, origin, progress)
        parity = write_bundle(folder, tokenizer, origin, references, out, overwrite=overwrite, progress=progress.stage)
    return Exported(out, parity, folder_size(out))


def _merged_from(folder: Path, name: str) -> tuple[str, str]:
    """(base, adapter) of a checkpoint: what `merge` wrote down, else just its own name and ""."""
    path = folder / MERGE
    if not path.is_file():
        return name, ""
    record: dict[str, Any] = read_json(path)
    return record["base"], record["adapter"]


def _prompts(task: Task | None, split: SplitName, limit: int, progress: Progress) -> Sequence[str]:
    if task is None:
        return SENTENCES
    try:
        examples = load_splits(task, [split])[split]
    except (UsageError, LoraFtError) as error:
        progress.note(f"the task's {split} rows are not at hand ({error.message}); comparing on built-in sentences")
        return SENTENCES
    return [example.prompt for example in examples[:limit]] or SENTENCES


def _references(
    model: T5ForConditionalGeneration, tokenizer: Tokenizer, prompts: Sequence[str], origin: Origin, progress: Progress
) -> Iterator[Reference]:
    """PyTorch's greedy text and its logits, in float32 on the CPU, a batch at a time."""
    model = model.to("cpu", torch.float32).eval()
    rows = tokenizer.encode(prompts, origin.source_length)
    progress.stage("comparing with PyTorch", len(rows))
    finished = 0
    for batch in by_length(rows, _BATCH):
        ids = torch.from_numpy(pad([rows[i] for i in batch]))
        mask = (ids != PAD).long()
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=origin.max_new_tokens, do_sample=False, num_beams=1
            )
            logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=made[:, :-1]).logits
        yield Reference(ids.numpy(), mask.numpy(), made[:, 1:].numpy(), logits.float().numpy(), origin.max_new_tokens)
        finished += len(batch)
        progress.advance(finished)

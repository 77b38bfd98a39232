"""The job `merge`: a run in, a checkpoint out that needs no peft. What was trained whole is one already."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from lora_ft.core.files import folder_size, staged_folder, write_json, write_text
from lora_ft.core.output_paths import making
from lora_ft.core.progress import Progress
from lora_ft.models.checkpoints import MERGE, save_checkpoint
from lora_ft.models.merging import merge_in_memory
from lora_ft.models.peft_adapter import PeftAdapter, name_of, named_base
from lora_ft.publishing.model_card import checkpoint_card, facts_of_run
from lora_ft.runs.run import CARD, TASK, Run
from lora_ft.tasks.files import save_task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Report:
    """What `merge` wrote."""

    out: Path
    difference: float
    rows: int
    bytes: int


def merge(
    run: Run | PeftAdapter,
    out: Path,
    *,
    base: str | None = None,
    dtype: str = "fp32",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Merge a run's adapter, or one that peft saved elsewhere, and write the checkpoint.

    Args:
        run: the run, or the adapter.
        out: folder to make.
        base: instead of the one that the run names (a copy of it elsewhere, say).
        dtype: "fp32" or "bf16"; the merge itself is done in fp32 and cast once.
        overwrite: replace `out` where it exists.
        progress: told what happens.

    Raises:
        UsageError, LoraFtError: `out` is taken, or the adapter does not belong to the base.
    """
    inputs: list[str | Path] = [run.folder, base or named_base(run)]
    with making(out, overwrite=overwrite, inputs=inputs), staged_folder(out, overwrite=overwrite) as staging:
        merged = merge_in_memory(run, base=base, progress=progress)
        save_checkpoint(merged.model.to(DTYPES[dtype]), merged.base.folder, staging, merged.extended)
        if run.task is not None:
            save_task(run.task, staging / TASK)
        record = {
            "base": merged.base.name,
            "adapter": name_of(run),
            "dtype": dtype,
            "largest_logit_difference": merged.difference,
            "rows": merged.rows,
            "versions": {name: version(name) for name in ("lora-ft", "torch", "transformers", "peft")},
            "training": {"metrics": run.metrics, "scores": run.scores} if run.task else None,
        }
        write_json(staging / MERGE, record)
        write_text(staging / CARD, checkpoint_card(facts_of_run(run) if isinstance(run, Run) else None, record))
    return Report(out, merged.difference, merged.rows, folder_size(out))

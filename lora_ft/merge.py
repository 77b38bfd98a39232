"""The verb `merge`: merge an adapter into its base, and write a checkpoint that does not need peft."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lora_ft.core.files import folder_size, staged_folder, write_json, write_text
from lora_ft.core.output_paths import making
from lora_ft.core.plain import plain_fields
from lora_ft.core.progress import Progress
from lora_ft.models.checkpoints import MERGE, save_checkpoint
from lora_ft.models.merging import merge_in_memory
from lora_ft.models.peft_adapter import PeftAdapter, name_of, named_base, open_adapter
from lora_ft.publishing.model_card import checkpoint_card, run_facts
from lora_ft.runs.run import CARD, TASK, Run
from lora_ft.tasks.files import save_task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Merged:
    """The result of `merge`.

    Attributes:
        out: Folder of the checkpoint.
        difference: Largest difference of any logit between the checkpoint and the base with its adapter.
        rows: Number of prompts on which logits were compared.
        bytes: Size of the checkpoint.
    """

    out: Path
    difference: float
    rows: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.out}: {self.bytes / 1e6:.1f} MB, logits differ by at most {self.difference:.2g}"

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the types of JSON."""
        return plain_fields(self)


def merge(
    run: Run | PeftAdapter | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | None = None,
    dtype: str = "fp32",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Merged:
    """Merge a run's adapter, or an adapter saved by peft, and write the checkpoint.

    Args:
        run: Run, or adapter saved by peft.
        out: Folder to write.
        base: Base to use, such as a copy in another place. Default: the base that the run names.
        dtype: "fp32" or "bf16". The merge itself is computed in fp32 and cast once.
        overwrite: Replace `out` if lora-ft wrote it.
        progress: Receives stages and steps.

    Raises:
        UsageError, LoraFtError: `out` exists, or the adapter does not belong to the base.
    """
    run, out = open_adapter(run), Path(out)
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
        write_text(staging / CARD, checkpoint_card(run_facts(run) if isinstance(run, Run) else None, record))
    return Merged(out, merged.difference, merged.rows, folder_size(out))

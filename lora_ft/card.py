"""The model card of a run, as Markdown with the metadata the hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lora_ft.bases import OFFLINE
from lora_ft.task import Task


def model_card(task: Task, metrics: dict[str, Any]) -> str:
    """README.md of a run."""
    speed, rows = metrics["speed"], metrics["rows"]
    local = task.base == OFFLINE or Path(task.base).is_dir()
    metadata = {"library_name": "peft", "pipeline_tag": "text2text-generation", "tags": ["lora", "t5"]}
    head = yaml.safe_dump(metadata if local else {"base_model": task.base, **metadata})
    found = 'find_base("offline").folder' if task.base == OFFLINE else repr(task.base)
    best = metrics["best_metric"]
    score = (
        f"Best {task.train.metric_for_best_model} on {rows['validation']:,} validation rows: {best:.2f} "
        f"(step {metrics['best_step']:,})."
        if best is not None
        else "Trained without validation rows."
    )
    lora, train = task.lora, task.train
    notice = f"\n> {metrics['base']['notice']}\n" if metrics["base"]["notice"] else ""
    return f"""---
{head}---

# {task.name}

A LoRA adapter for `{task.base}`, trained with lora-ft.
{notice}
Prompt: `{task.prompt!r}`

{score} `lora-ft evaluate` on the test rows gives the score to quote.

| | |
|---|---|
| adapter | r {lora.r}, alpha {lora.lora_alpha}, dropout {lora.lora_dropout:g}, {lora.target_modules} |
| trained parameters | {metrics["trainable_parameters"]:,} |
| rows | {rows["train"]:,} |
| steps | {metrics["steps"]:,} of {metrics["global_batch"]} rows, learning rate {train.learning_rate:g} |
| precision | {metrics["precision"]}{", compiled" if metrics["compiled"] else ""} |
| time | {speed["seconds"]:,.0f} s, {speed["samples_per_second"] or 0:.1f} samples/s |
| versions | {", ".join(f"{name} {number}" for name, number in metrics["versions"].items())} |

```python
{"from lora_ft.bases import find_base" + chr(10) if task.base == OFFLINE else ""}from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

base = AutoModelForSeq2SeqLM.from_pretrained({found})
model = PeftModel.from_pretrained(base, "adapter")
```

Every setting is in `task.yaml`, every measurement in `metrics.json` and `log.jsonl`.
"""

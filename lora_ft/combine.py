"""The job `combine`: adapters of several tasks made one, through peft, and scored on every task's validation rows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import set_seed

from export.errors import UsageError
from export.files import staged_folder, write_json, write_text
from export.places import refuse_existing
from lora_ft.adapter_files import WEIGHTS, adapter_config
from lora_ft.adapters import load_adapter, load_another, name_base
from lora_ft.bases import Base, find_base, load_model, load_tokenizer, quiet_transformers
from lora_ft.card import Facts, run_card
from lora_ft.data import load_splits, require
from lora_ft.engines import TorchEngine
from lora_ft.metrics import score
from lora_ft.progress import Progress, Silent
from lora_ft.runs import ADAPTER, CARD, METRICS, TASK, Run
from lora_ft.task import Task
from lora_ft.taskfile import save_task

if TYPE_CHECKING:
    from peft import PeftModel

# Sums of the products of A and B, which adapters of any rank have; TIES and DARE are taken apart again by SVD.
WAYS = {"weighted": "cat", "ties": "ties_svd", "dare": "dare_linear_svd"}
_NAME = "combined"


@dataclass(frozen=True)
class Score:
    """How one task fares: evaluate.metric on its validation rows, 0 to 100.

    Attributes:
        task, metric, rows: what was scored.
        alone, combined: by the task's own adapter, and by the one made of all.
    """

    task: str
    metric: str
    rows: int
    alone: float
    combined: float


@dataclass(frozen=True)
class Combined:
    """What `combine` wrote: a run whose adapter is of this rank, and its scores."""

    run: Run
    rank: int
    scores: list[Score]


def combine(
    runs: Sequence[Run], out: Path, *, way: str = "weighted", weights: Sequence[float] = (), density: float = 0.5,
    seed: int = 0, limit: int | None = None, overwrite: bool = False, progress: Progress | None = None,
) -> Combined:  # fmt: skip
    """Make one adapter of several on the same base, and score it on all their tasks.

    Args:
        runs: at least two; the first one's task becomes the result's, under the name of `out`.
        out: folder to make, a run.
        way: "weighted" (the sum), "ties" (arXiv 2306.01708) or "dare" (arXiv 2311.03099).
        weights: of each; by default equal ones that sum up to 1.
        density: share of the weights that ties and dare keep.
        seed: of what dare drops.
        limit: score the first so many validation rows.
        overwrite: replace `out` where it exists.
        progress: told what happens.

    Raises:
        UsageError: runs that cannot be combined, or `out` is taken.
    """
    progress = progress or Silent()
    refuse_existing(out, overwrite=overwrite, inputs=[run.folder for run in runs])
    _require_alike(runs, way, weights)
    shares = list(weights) or [1 / len(runs)] * len(runs)
    base = find_base(runs[0].task.base)
    progress.stage("combining", len(runs))
    names = [f"run{at}" for at in range(len(runs))]
    with quiet_transformers():
        adapted = load_adapter(load_model(base.folder), runs[0].adapter, name=names[0])
        for name, run in zip(names[1:], runs[1:], strict=True):
            load_another(adapted, run.adapter, name)
        rank = _rank(adapted, names)
        set_seed(seed)
        kept = {} if way == "weighted" else {"density": density, "svd_rank": rank, "svd_full_matrices": False}
        adapted.add_weighted_adapter(names, shares, _NAME, combination_type=WAYS[way], **kept)
    scores = _scores(runs, adapted, names, base, limit, progress)
    with staged_folder(out, overwrite=overwrite) as staging:
        _write(adapted, staging / ADAPTER, base)
        made = {"way": way, "runs": [run.task.name for run in runs], "weights": shares,
                **({} if way == "weighted" else {"density": density, "seed": seed}),
                "scores": [vars(one) for one in scores]}  # fmt: skip
        task = _task(runs, out, rank, staging / ADAPTER)
        metrics = _metrics(runs, staging / ADAPTER) | {"combined": made}
        save_task(task, staging / TASK)
        write_json(staging / METRICS, metrics)
        write_text(staging / CARD, run_card(Facts(task, metrics)))
    return Combined(Run(out), rank, scores)


def _require_alike(runs: Sequence[Run], way: str, weights: Sequence[float]) -> None:
    if len(runs) < 2:
        raise UsageError("there is nothing to combine", "name two runs or more")
    if way not in WAYS:
        raise UsageError(f"unknown way to combine: {way}", f"use one of {', '.join(WAYS)}")
    if weights and len(weights) != len(runs):
        raise UsageError(f"{len(weights)} weights for {len(runs)} runs", "give one for each, or none")
    for run in runs:
        lora = run.task.lora
        if run.task.base != runs[0].task.base:
            raise UsageError(
                f"{run.folder} is on base {run.task.base}, {runs[0].folder} on {runs[0].task.base}",
                "combine adapters of one base",
            )
        if run.task.method != "lora" or lora.use_dora or lora.new_tokens or lora.trainable_token_indices:
            raise UsageError(f"{run.folder} holds more than LoRA's matrices", "combine plain LoRA adapters")


def _rank(adapted: PeftModel, names: Sequence[str]) -> int:
    """The largest sum of the adapters' ranks in any layer: what the sum of their products may need."""
    ranks = [sum(module.r.get(name, 0) for name in names) for module in adapted.modules() if hasattr(module, "lora_A")]
    return max(ranks)


def _scores(
    runs: Sequence[Run], adapted: PeftModel, names: Sequence[str], base: Base, limit: int | None, progress: Progress
) -> list[Score]:
    """Of each task with validation rows: by its own adapter, and by the combined one."""
    found = []
    for name, run in zip(names, runs, strict=True):
        task = run.task
        examples = require(load_splits(task, ["validation"]), "validation", task)[:limit]
        tokenizer = load_tokenizer(base.folder, task.codec)
        values = []
        for adapter in (name, _NAME):
            adapted.set_adapter(adapter)
            adapted.eval()
            progress.stage(f"scoring {task.name} with {'its own' if adapter == name else 'the combined'} adapter",
                           len(examples))  # fmt: skip
            engine = TorchEngine(adapted, tokenizer, task.lengths.source)
            answers = engine.generate([one.prompt for one in examples], task.scoring_options(), done=progress.advance)
            texts, references = [answer.text for answer in answers], [one.references for one in examples]
            values.append(float(score(task.evaluate.metric, texts, references, task.evaluate).value))
        found.append(Score(task.name, task.evaluate.metric, len(examples), *values))
    return found


def _write(adapted: PeftModel, folder: Path, base: Base) -> None:
    """The combined adapter in peft's format."""
    adapted.save_pretrained(folder, selected_adapters=[_NAME])
    for path in (folder / _NAME).iterdir():
        path.rename(folder / path.name)
    (folder / _NAME).rmdir()
    (folder / CARD).unlink(missing_ok=True)
    name_base(folder, base)


def _task(runs: Sequence[Run], out: Path, rank: int, adapter: Path) -> Task:
    """The first run's, with the combined adapter in it."""
    first = runs[0].task
    config = adapter_config(adapter)
    lora = first.lora.model_copy(update={
        "r": config["r"], "lora_alpha": config["lora_alpha"], "rank_pattern": {}, "alpha_pattern": {},
        "use_rslora": False, "init_lora_weights": True, "loraplus_lr_ratio": None,
        "target_modules": sorted(config["target_modules"]),
    })  # fmt: skip
    made_of = f"Combined from {', '.join(run.task.name for run in runs)}, not trained on all of their rows."
    card = first.card.model_copy(update={"limits": " ".join(filter(None, [made_of, first.card.limits]))})
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", out.name).lstrip("._-") or _NAME
    return first.model_copy(update={"name": name, "lora": lora, "card": card})


def _metrics(runs: Sequence[Run], adapter: Path) -> dict[str, Any]:
    """Of all trainings together; no score chose this adapter."""
    from safetensors import safe_open

    every = [run.metrics for run in runs]
    with safe_open(adapter / WEIGHTS, "np") as weights:
        parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return every[0] | {
        "rows": {split: sum(one["rows"][split] for one in every) for split in ("train", "validation")},
        "steps": sum(one["steps"] for one in every),
        "trainable_parameters": parameters,
        "train_loss": sum(one["train_loss"] for one in every) / len(every),
        "best_metric": None,
        "best_step": None,
        "evaluations": [],
        "speed": every[0]["speed"] | {"seconds": sum(one["speed"]["seconds"] for one in every)},
        "energy": None,
    }

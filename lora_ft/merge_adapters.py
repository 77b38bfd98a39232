"""The job `merge_adapters`: several adapters of one base become one, through peft, and are scored on validation rows.

An adapter is a run, or a folder that peft saved. Of runs alone the result is a run, with the task of the first. A
folder of peft has neither a task nor figures of its training, so with one among them the result is a folder of peft.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import set_seed

from lora_ft.core.errors import BaseMismatchUsageError, UsageError
from lora_ft.core.files import staged_folder, write_json, write_text
from lora_ft.core.output_paths import making
from lora_ft.core.plain import plain_fields
from lora_ft.core.progress import Progress, Silent
from lora_ft.data.splits import load_splits, require, with_labels
from lora_ft.evaluation.metrics import score
from lora_ft.models.adapter_files import adapter_config, lora_config
from lora_ft.models.adapters import load_adapter, load_another, name_base
from lora_ft.models.backends import TorchBackend
from lora_ft.models.bases import Base, load_model, load_tokenizer, quiet_transformers
from lora_ft.models.peft_adapter import PeftAdapter, base_of, name_of, open_adapter
from lora_ft.publishing.model_card import Facts, run_card
from lora_ft.runs.run import ADAPTER, CARD, METRICS, TASK, WEIGHTS, Run
from lora_ft.tasks.files import save_task
from lora_ft.tasks.schema import Task

if TYPE_CHECKING:
    from peft import PeftModel

# Sums of the products of A and B, which adapters of any rank have; TIES and DARE are taken apart again by SVD.
WAYS = {"weighted": "cat", "ties": "ties_svd", "dare": "dare_linear_svd"}
RECORD = "combined.json"
_NAME = "combined"

Member = Run | PeftAdapter


@dataclass(frozen=True)
class AdapterScore:
    """The score of one adapter's task: evaluate.metric on its validation rows, 0 to 100.

    Attributes:
        adapter: Name of the adapter: that of its task, or of its folder.
        task, metric, rows: Name of the task, name of the score, number of rows.
        alone, combined: Score of the adapter, and of the one made of all.
    """

    adapter: str
    task: str
    metric: str
    rows: int
    alone: float
    combined: float


@dataclass(frozen=True)
class MergedAdapters:
    """The result of `merge_adapters`.

    Attributes:
        run: Run, or folder in peft's format.
        rank: Rank of the merged adapter.
        scores: Score of each adapter's task before and after, where rows were available.
    """

    run: Member
    rank: int
    scores: list[AdapterScore]

    def __str__(self) -> str:
        lines = [f"{one.adapter}: {one.metric} {one.alone:.2f} alone, {one.combined:.2f} merged" for one in self.scores]
        return "\n".join([f"{self.run.folder}: rank {self.rank}", *lines])

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the types of JSON."""
        return plain_fields(self)


def merge_adapters(
    members: Sequence[Member | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    way: str = "weighted",
    weights: Sequence[float] = (),
    density: float = 0.5,
    seed: int = 0,
    base: str | None = None,
    task: Task | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergedAdapters:
    """Combine adapters of one base into one, and score it on their tasks.

    Args:
        members: At least two adapters. Of runs alone the result is a run of the first one's task, named after `out`.
        out: Folder to make.
        way: "weighted" (the sum), "ties" (arXiv 2306.01708) or "dare" (arXiv 2311.03099).
        weights: Weight of each adapter. Default: equal ones that sum up to 1.
        density: Share of the weights that ties and dare keep.
        seed: Seed of the weights that dare drops.
        base: Base to load instead of the one that the adapters name.
        task: Task to score adapters on that have none; without it they are not scored.
        limit: Largest number of validation rows to score.
        overwrite: Replace `out` if lora-ft made it.
        progress: Receives stages and steps.

    Raises:
        UsageError: The adapters cannot be combined, or `out` is taken.
    """
    progress, out = progress or Silent(), Path(out)
    adapters = [open_adapter(member) for member in members]
    inputs = [*(member.folder for member in adapters), *([base] if base else map(_base_name, adapters))]
    with making(out, overwrite=overwrite, inputs=inputs):
        _require_alike(adapters, way, weights, base)
        shares = list(weights) or [1 / len(adapters)] * len(adapters)
        found = base_of(adapters[0], base)
        _require_known_tokens(adapters, found)
        progress.stage("combining", len(adapters))
        names = [f"member{at}" for at in range(len(adapters))]
        adapted = _load(adapters, names, found)
        rank = _rank(adapted, names, exact=way == "weighted")
        set_seed(seed)
        kept = {} if way == "weighted" else {"density": density, "svd_rank": rank, "svd_full_matrices": False}
        with quiet_transformers():
            adapted.add_weighted_adapter(names, shares, _NAME, combination_type=WAYS[way], **kept)
        scores = _scores(adapters, adapted, names, found, task, limit, progress)
        record = {
            "way": way,
            "runs": list(map(name_of, adapters)),
            "weights": shares,
            **({} if way == "weighted" else {"density": density, "seed": seed}),
            "scores": [vars(one) for one in scores],
        }
        named = replace(found, name=_base_name(adapters[0]) or found.name)
        with staged_folder(out, overwrite=overwrite) as staging:
            runs = [member for member in adapters if isinstance(member, Run)]
            if len(runs) == len(adapters):
                _write_run(runs, adapted, out, staging, named, rank, record)
            else:
                _write(adapted, staging, named)
                versions = {name: version(name) for name in ("lora-ft", "torch", "transformers", "peft")}
                write_json(staging / RECORD, {"base": named.name, **record, "versions": versions})
    return MergedAdapters(Run(out) if len(runs) == len(adapters) else PeftAdapter(out), rank, scores)


def _base_name(member: Member) -> str:
    return member.base if isinstance(member, PeftAdapter) else member.task.base


def _require_alike(members: Sequence[Member], way: str, weights: Sequence[float], base: str | None) -> None:
    if len(members) < 2:
        raise UsageError("there is nothing to combine", "name two adapters or more")
    if way not in WAYS:
        raise UsageError(f"unknown way to combine: {way}", f"use one of {', '.join(WAYS)}")
    if weights and len(weights) != len(members):
        raise UsageError(f"{len(weights)} weights for {len(members)} runs", "give one for each, or none")
    first = members[0]
    for member in members:
        if not base and not _is_same(_base_name(member), _base_name(first)):
            raise BaseMismatchUsageError(
                f"{member.folder} is on base {_base_name(member) or '(not named)'}, {first.folder} on "
                f"{_base_name(first) or '(not named)'}",
                "combine adapters of one base; if it is one under two names, name it with --base",
            )
        if more := _more_than_lora(member):
            raise UsageError(f"{member.folder} holds more than LoRA's matrices ({more})", "combine plain LoRA adapters")


def _is_same(base: str, other: str) -> bool:
    """Return whether two names are of one base: equal, or paths of one folder."""
    here, there = Path(base), Path(other)
    return base == other or bool(base and other and here.is_dir() and there.is_dir() and here.samefile(there))


def _more_than_lora(member: Member) -> str:
    """Return the keys of the parts of an adapter that sums of LoRA's products leave out, or ""."""
    if member.task is not None and member.task.method != "lora":
        return f"method {member.task.method}"
    config = lora_config(member.adapter)
    parts = {
        "use_dora": config.use_dora,
        "modules_to_save": config.modules_to_save,
        "bias": config.bias != "none",
        "trainable_token_indices": config.trainable_token_indices,
    }
    return ", ".join(name for name, value in parts.items() if value)


def _require_known_tokens(members: Sequence[Member], base: Base) -> None:
    for member in members:
        if isinstance(member, PeftAdapter) and member.tokenizer(base, "none")[1] is not None:
            raise UsageError(f"{member.folder} has more tokens than its base", "combine adapters without new tokens")


def _load(members: Sequence[Member], names: Sequence[str], base: Base) -> PeftModel:
    """Load a base with all adapters, each under its name, and describe them so that peft can combine any of them."""
    with quiet_transformers():
        adapted = load_adapter(load_model(base.folder), members[0].adapter, name=names[0])
        for name, member in zip(names[1:], members[1:], strict=True):
            load_another(adapted, member.adapter, name)
    configs = [adapted.peft_config[name] for name in names]
    # peft joins lists of names, and takes all other keys of the first for the result.
    if any(isinstance(one.target_modules, str) or one.layers_to_transform or one.exclude_modules for one in configs):
        layers = {key: module for key, module in adapted.get_base_model().named_modules() if hasattr(module, "lora_A")}
        for name, config in zip(names, configs, strict=True):
            config.target_modules = {key for key, module in layers.items() if name in module.lora_A}
            config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
    configs[0].use_rslora = False  # the scales of all are in the products, so the result's is 1
    configs[0].init_lora_weights = True
    return adapted


def _rank(adapted: PeftModel, names: Sequence[str], *, exact: bool) -> int:
    """Return the largest sum of the adapters' ranks in any layer, which the sum of their products may need.

    Where the products are factored again (not `exact`), no layer has more components than its smaller side.
    """
    layers = [module for module in adapted.modules() if hasattr(module, "lora_A")]
    rank = max(sum(layer.r.get(name, 0) for name in names) for layer in layers)
    return rank if exact else min(rank, *(min(layer.in_features, layer.out_features) for layer in layers))


def _scores(
    members: Sequence[Member],
    adapted: PeftModel,
    names: Sequence[str],
    base: Base,
    task: Task | None,
    limit: int | None,
    progress: Progress,
) -> list[AdapterScore]:
    """Score each adapter that has a task with validation rows, or is scored on `task`: alone, and combined."""
    tasks = [member.task or task for member in members]
    if without := tasks.count(None):
        progress.note(f"{without} of {len(tasks)} adapters have no task and are not scored; name one with --task")
    return [
        _score(name_of(member), with_labels(own), adapted, name, base, limit, progress)
        for member, own, name in zip(members, tasks, names, strict=True)
        if own is not None
    ]


def _score(
    title: str, task: Task, adapted: PeftModel, name: str, base: Base, limit: int | None, progress: Progress
) -> AdapterScore:
    examples = require(load_splits(task, ["validation"]), "validation", task)[:limit]
    tokenizer = load_tokenizer(base.folder, task.codec)
    values = []
    for adapter in (name, _NAME):
        adapted.set_adapter(adapter)
        adapted.eval()
        whose = "its own" if adapter == name else "the combined"
        progress.stage(f"scoring {title} with {whose} adapter", len(examples))
        engine = TorchBackend(adapted, tokenizer, task.lengths.source)
        answers = engine.generate([one.prompt for one in examples], task.scoring_options(), done=progress.advance)
        texts, references = [answer.text for answer in answers], [one.references for one in examples]
        values.append(float(score(task.evaluate.metric, texts, references, task.evaluate).value))
    return AdapterScore(title, task.name, task.evaluate.metric, len(examples), *values)


def _write_run(
    runs: Sequence[Run], adapted: PeftModel, out: Path, folder: Path, base: Base, rank: int, record: dict[str, Any]
) -> None:
    """Write the combined adapter of runs as a run."""
    _write(adapted, folder / ADAPTER, base)
    task = _task(runs, out, rank, folder / ADAPTER)
    metrics = _metrics(runs, folder / ADAPTER) | {"combined": record}
    save_task(task, folder / TASK)
    write_json(folder / METRICS, metrics)
    write_text(folder / CARD, run_card(Facts(task, metrics)))


def _write(adapted: PeftModel, folder: Path, base: Base) -> None:
    """Write the combined adapter in peft's format."""
    adapted.save_pretrained(folder, selected_adapters=[_NAME])
    for path in (folder / _NAME).iterdir():
        path.rename(folder / path.name)
    (folder / _NAME).rmdir()
    (folder / CARD).unlink(missing_ok=True)
    name_base(folder, base)


def _task(runs: Sequence[Run], out: Path, rank: int, adapter: Path) -> Task:
    """Return the task of the first run, with the ranks and layers of the combined adapter."""
    first = runs[0].task
    config = adapter_config(adapter)
    lora = first.lora.model_copy(
        update={
            "r": config["r"],
            "lora_alpha": config["lora_alpha"],
            "rank_pattern": {},
            "alpha_pattern": {},
            "use_rslora": False,
            "init_lora_weights": True,
            "loraplus_lr_ratio": None,
            "target_modules": sorted(config["target_modules"]),
        }
    )
    made_of = f"Combined from {', '.join(run.task.name for run in runs)}, not trained on all of their rows."
    card = first.card.model_copy(update={"limits": " ".join(filter(None, [made_of, first.card.limits]))})
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", out.name).lstrip("._-") or _NAME
    return first.model_copy(update={"name": name, "lora": lora, "card": card})


def _metrics(runs: Sequence[Run], adapter: Path) -> dict[str, Any]:
    """Return the metrics of all trainings together. No score chose this adapter."""
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

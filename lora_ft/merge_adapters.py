"""The verb `merge_adapters`: merge several adapters of one base into one, and score it on validation rows.

An adapter is a run, or a folder saved by peft. If all are runs, the result is a run with the task of the first. A peft
folder has neither a task nor training metrics, so if any adapter is one, the result is a peft folder too.
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
from lora_ft.models.adapter_files import adapter_config, lora_config, moved_base
from lora_ft.models.adapters import load_adapter, load_another, name_base
from lora_ft.models.backends import TorchBackend
from lora_ft.models.bases import Base, load_model, load_tokenizer, quiet_transformers
from lora_ft.models.peft_adapter import PeftAdapter, adds_tokens, base_of, name_of, open_adapter
from lora_ft.publishing.model_card import Facts, run_card
from lora_ft.runs.run import ADAPTER, CARD, METRICS, TASK, WEIGHTS, Run
from lora_ft.tasks.files import save_task
from lora_ft.tasks.schema import Task

if TYPE_CHECKING:
    from peft import PeftModel

# peft's combination types that add products of A and B, so that ranks may differ. TIES and DARE then need an SVD.
METHODS = {"weighted": "cat", "ties": "ties_svd", "dare": "dare_linear_svd"}
RECORD = "combined.json"
_NAME = "combined"

Member = Run | PeftAdapter


@dataclass(frozen=True)
class AdapterScore:
    """The score of one adapter on its task: evaluate.metric on its validation rows, 0 to 100.

    Attributes:
        adapter: Name of the adapter's task, or of its folder.
        task, metric, rows: Name of the task, name of the metric, number of rows.
        alone, combined: Scores of the adapter and of the merged adapter.
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
        run: Run, or peft folder.
        rank: Rank of the merged adapter.
        scores: Scores of each adapter that has a task.
    """

    run: Member
    rank: int
    scores: list[AdapterScore]

    def __str__(self) -> str:
        lines = [
            f"{entry.adapter}: {entry.metric} {entry.alone:.2f} alone, {entry.combined:.2f} merged"
            for entry in self.scores
        ]
        return "\n".join([f"{self.run.folder}: rank {self.rank}", *lines])

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the types of JSON."""
        return plain_fields(self)


def merge_adapters(
    members: Sequence[Member | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    method: str = "weighted",
    weights: Sequence[float] = (),
    density: float = 0.5,
    seed: int = 0,
    base: str | None = None,
    task: Task | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergedAdapters:
    """Merge adapters of one base into one, and score it on their tasks.

    Args:
        members: At least two adapters. If all are runs, the result is a run with the task of the first, named after
            `out`.
        out: Folder to create.
        method: "weighted" (the sum), "ties" (arXiv 2306.01708) or "dare" (arXiv 2311.03099).
        weights: Weight of each adapter. Default: equal weights with the sum 1.
        density: Share of the weights that ties and dare keep.
        seed: Seed of the weights that dare drops.
        base: Base to use. Default: the base that the adapters name.
        task: Task to score adapters without a task on. Default: they are not scored.
        limit: Maximum number of validation rows to score.
        overwrite: Replace `out` if lora-ft wrote it.
        progress: Receives stages and steps.

    Raises:
        UsageError: The adapters cannot be merged, or `out` exists.
    """
    progress, out = progress or Silent(), Path(out)
    adapters = [open_adapter(member) for member in members]
    inputs = [*(member.folder for member in adapters), *([base] if base else map(_base_name, adapters))]
    with making(out, overwrite=overwrite, inputs=inputs):
        _require_alike(adapters, method, weights, base)
        shares = list(weights) or [1 / len(adapters)] * len(adapters)
        base_model = base_of(adapters[0], base)
        for member in adapters:
            if isinstance(member, PeftAdapter) and member.notice:
                progress.note(f"warning: {member.notice}")
            if adds_tokens(member, base_of(member, base)):
                raise UsageError(f"{member.folder} has more tokens than its base", "merge adapters without new tokens")
        progress.stage("merging", len(adapters))
        names = [f"member{at}" for at in range(len(adapters))]
        adapted = _load(adapters, names, base_model)
        rank = _rank(adapted, names, exact=method == "weighted")
        set_seed(seed)
        options = {} if method == "weighted" else {"density": density, "svd_rank": rank, "svd_full_matrices": False}
        with quiet_transformers():
            adapted.add_weighted_adapter(names, shares, _NAME, combination_type=METHODS[method], **options)
        scores = _scores(adapters, adapted, names, base_model, task, limit, progress)
        record = {
            "method": method,
            "runs": list(map(name_of, adapters)),
            "weights": shares,
            **({} if method == "weighted" else {"density": density, "seed": seed}),
            "scores": [vars(adapter_score) for adapter_score in scores],
        }
        named = replace(base_model, name=_base_name(adapters[0]) or base_model.name)
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


def _require_alike(members: Sequence[Member], method: str, weights: Sequence[float], base: str | None) -> None:
    if len(members) < 2:
        raise UsageError(f"too few adapters to merge (got {len(members)})", "name at least two")
    if method not in METHODS:
        raise UsageError(f"merge method {method} is not supported", f"use one of {', '.join(METHODS)}")
    if weights and len(weights) != len(members):
        raise UsageError(
            f"the number of weights differs from the number of adapters (got {len(weights)} for {len(members)})",
            "pass one weight per adapter, or none",
        )
    first = members[0]
    for member in members:
        if not base and not _is_same(_base_name(member), _base_name(first)):
            raise BaseMismatchUsageError(
                f"{member.folder} has the base {_base_name(member) or '(not named)'}, but {first.folder} has "
                f"{_base_name(first) or '(not named)'}",
                "merge adapters of one base, or pass --base if both names mean the same base",
            )
        if more := _more_than_lora(member):
            raise UsageError(f"{member.folder} has more than LoRA's matrices ({more})", "merge plain LoRA adapters")


def _is_same(first: str, second: str) -> bool:
    """Return whether two names of bases are equal, or are paths of the same folder."""
    first_folder, second_folder = Path(first), Path(second)
    return first == second or bool(
        first and second and first_folder.is_dir() and second_folder.is_dir() and first_folder.samefile(second_folder)
    )


def _more_than_lora(member: Member) -> str:
    """Return the config keys of an adapter's parts that a sum of LoRA products leaves out, or ""."""
    if member.task is not None and member.task.method != "lora":
        return f"method {member.task.method}"
    config = lora_config(member.adapter)
    parts = {
        "use_dora": config.use_dora,
        "modules_to_save": config.modules_to_save,
        "bias": config.bias != "none",
        "trainable_token_indices": config.trainable_token_indices,
        f"init_lora_weights {config.init_lora_weights}": moved_base(vars(config)),
    }
    return ", ".join(name for name, value in parts.items() if value)


def _load(members: Sequence[Member], names: Sequence[str], base: Base) -> PeftModel:
    """Load a base with all adapters, each under its name, and adjust their configs so that peft can merge them."""
    with quiet_transformers():
        adapted = load_adapter(load_model(base.folder), members[0].adapter, name=names[0])
        for name, member in zip(names[1:], members[1:], strict=True):
            load_another(adapted, member.adapter, name)
    configs = [adapted.peft_config[name] for name in names]
    # The result has the union of the lists of target modules, and all other keys of the first config.
    if any(
        isinstance(config.target_modules, str) or config.layers_to_transform is not None or config.exclude_modules
        for config in configs
    ):
        layers = {key: module for key, module in adapted.get_base_model().named_modules() if hasattr(module, "lora_A")}
        for name, adapter_config in zip(names, configs, strict=True):
            adapter_config.target_modules = {key for key, module in layers.items() if name in module.lora_A}
            adapter_config.layers_to_transform = adapter_config.layers_pattern = adapter_config.exclude_modules = None
    configs[0].use_rslora = False  # the products include every adapter's scale, so the result has scale 1
    configs[0].init_lora_weights = True
    return adapted


def _rank(adapted: PeftModel, names: Sequence[str], *, exact: bool) -> int:
    """Return the rank of the merged adapter: the largest sum of the adapters' ranks in any layer.

    If an SVD factors the products again (not `exact`), the rank is at most the smaller side of every layer.
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
    """Score each adapter alone and merged, on validation rows of its task, or of `task` if it has none."""
    tasks = [member.task or task for member in members]
    if unscored := tasks.count(None):
        progress.note(f"{unscored} of {len(tasks)} adapters have no task and are not scored; pass one as --task")
    return [
        _score(name_of(member), with_labels(own_task), adapted, name, base, limit, progress)
        for member, own_task, name in zip(members, tasks, names, strict=True)
        if own_task is not None
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
        which = "its own" if adapter == name else "the merged"
        progress.stage(f"scoring {title} with {which} adapter", len(examples))
        engine = TorchBackend(adapted, tokenizer, task.lengths.source)
        answers = engine.generate(
            [example.prompt for example in examples], task.scoring_options(), on_progress=progress.advance
        )
        texts, references = [answer.text for answer in answers], [example.references for example in examples]
        values.append(float(score(task.evaluate.metric, texts, references, task.evaluate).value))
    return AdapterScore(title, task.name, task.evaluate.metric, len(examples), *values)


def _write_run(
    runs: Sequence[Run], adapted: PeftModel, out: Path, folder: Path, base: Base, rank: int, record: dict[str, Any]
) -> None:
    """Write the merged adapter of runs as a run."""
    _write(adapted, folder / ADAPTER, base)
    task = _task(runs, out, rank, folder / ADAPTER)
    metrics = _metrics(runs, folder / ADAPTER) | {"combined": record}
    save_task(task, folder / TASK)
    write_json(folder / METRICS, metrics)
    write_text(folder / CARD, run_card(Facts(task, metrics)))


def _write(adapted: PeftModel, folder: Path, base: Base) -> None:
    """Write the merged adapter in peft's format."""
    for name, parameter in adapted.named_parameters():
        if f".{_NAME}." in name:  # an SVD returns slices, and peft 0.18 saves no slices
            parameter.data = parameter.data.contiguous()
    adapted.save_pretrained(folder, selected_adapters=[_NAME])
    for path in (folder / _NAME).iterdir():
        path.rename(folder / path.name)
    (folder / _NAME).rmdir()
    (folder / CARD).unlink(missing_ok=True)
    name_base(folder, base)


def _task(runs: Sequence[Run], out: Path, rank: int, adapter: Path) -> Task:
    """Return the task of the first run with the ranks and layers of the merged adapter."""
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
    origin = f"Merged from {', '.join(run.task.name for run in runs)}, not trained on all of their rows."
    card = first.card.model_copy(update={"limits": " ".join(filter(None, [origin, first.card.limits]))})
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", out.name).lstrip("._-") or _NAME
    return first.model_copy(update={"name": name, "lora": lora, "card": card})


def _metrics(runs: Sequence[Run], adapter: Path) -> dict[str, Any]:
    """Return the sums of the metrics of all trainings. No validation score chose the merged adapter."""
    from safetensors import safe_open

    trainings = [run.metrics for run in runs]
    with safe_open(adapter / WEIGHTS, "np") as weights:
        parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return trainings[0] | {
        "rows": {split: sum(metrics["rows"][split] for metrics in trainings) for split in ("train", "validation")},
        "steps": sum(metrics["steps"] for metrics in trainings),
        "trainable_parameters": parameters,
        "train_loss": sum(metrics["train_loss"] for metrics in trainings) / len(trainings),
        "best_metric": None,
        "best_step": None,
        "evaluations": [],
        "speed": trainings[0]["speed"] | {"seconds": sum(metrics["speed"]["seconds"] for metrics in trainings)},
        "energy": None,
    }

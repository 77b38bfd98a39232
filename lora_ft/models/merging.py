"""Merge an adapter into its base in memory, and verify that logits change by rounding only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_ft.core.errors import BaseMismatchError, LoraFtError, UsageError
from lora_ft.core.progress import Progress, Silent
from lora_ft.core.sample_prompts import SENTENCES
from lora_ft.core.tokenizer import Tokenizer, ragged
from lora_ft.data.splits import load_splits
from lora_ft.models.adapter_files import adapter_config
from lora_ft.models.adapters import load_adapter, merge_adapter
from lora_ft.models.bases import Base, load_model, load_tokenizer
from lora_ft.models.generation import model_generation
from lora_ft.models.peft_adapter import PeftAdapter, base_of
from lora_ft.runs.run import Run

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

_ROWS = 4
# Relative to the largest logit. Merging only reorders sums, so a larger difference is not rounding.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Merged:
    """An adapter merged into its base, in memory, in float32.

    Attributes:
        model: Merged model, in evaluation mode.
        base: Base that the adapter was merged into. Its folder has the tokenizer's files.
        tokenizer: The base's tokenizer, with the task's new tokens.
        extended: The same as `tokenizer` if it has new tokens, else None.
        difference: Largest difference of any logit between the merged model and the base with its adapter.
        rows: Number of prompts on which logits were compared; 0 if all weights were trained.
    """

    model: T5ForConditionalGeneration
    base: Base
    tokenizer: Tokenizer
    extended: Tokenizer | None = None
    difference: float = 0.0
    rows: int = 0


def merge_in_memory(
    run: Run | PeftAdapter,
    *,
    base: str | None = None,
    dropout: float | None = None,
    progress: Progress | None = None,
) -> Merged:
    """Load the base, merge the adapter in float32, and compare logits before and after.

    Args:
        run: Run, or adapter saved by peft.
        base: Base to use. Default: the base that the run names.
        dropout: Dropout rate of the merged model in training mode, instead of the base's own.
        progress: Receives the stage.

    Raises:
        UsageError: A base was named for a run that trained all weights.
        LoraFtError: The adapter is for another base, its weights are too large, or logits differ by more than rounding.
    """
    progress = progress or Silent()
    progress.stage("merging")
    if isinstance(run, Run):
        if run.task.method == "full":
            return _fully_trained(run, base, dropout)
        base_model = base_of(run, base)
        _check_base(run, base_model, named=base is not None)
        new_tokens = run.task.lora.new_tokens
        tokenizer = load_tokenizer(base_model.folder, run.task.codec, new_tokens)
        extended = tokenizer if new_tokens else None
        ids = tokenizer.encode(_texts(run), run.task.lengths.source)
    else:
        if run.notice:
            progress.note(f"warning: {run.notice}")
        base_model = base_of(run, base)
        tokenizer, extended = run.tokenizer(base_model, "none")
        ids = tokenizer.encode(SENTENCES[:_ROWS])
    adapted = load_adapter(load_model(base_model.folder, dropout=dropout), run.adapter)
    before = _logits(adapted, ids)
    model = merge_adapter(adapted)
    after = _logits(model, ids)
    if not (before.isfinite().all() and after.isfinite().all()):
        raise LoraFtError(
            f"the adapter {run.adapter} produces NaN or infinite logits, since some of its weights are too large",
            "train it again with a lower learning rate, or correct lora_alpha in its config",
        )
    difference = float((before - after).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(before.abs().max())):
        raise LoraFtError(
            f"merging changed logits by {difference:.3g}, which is more than rounding",
            "please report this with the output of `lora-ft doctor`",
        )
    return Merged(model, base_model, tokenizer, extended, difference, len(ids))


def _fully_trained(run: Run, base: str | None, dropout: float | None) -> Merged:
    """Return a run that trained all weights as `Merged`, since it has no adapter to merge."""
    if base is not None:
        raise UsageError(f"--base is set, but the run {run.folder} trained all weights", "leave out --base")
    as_base = Base(run.task.base, run.trained, run.metrics["base"]["notice"])
    return Merged(load_model(run.trained, dropout=dropout), as_base, load_tokenizer(run.trained, run.task.codec))


def _check_base(run: Run, base: Base, *, named: bool) -> None:
    trained = run.metrics.get("base", {})
    layers = base.config["num_layers"]
    config = base.config | {"num_decoder_layers": base.config.get("num_decoder_layers") or layers}
    for key in ("d_model", "vocab_size", "num_layers", "num_decoder_layers"):
        if key in trained and trained[key] != config[key]:
            raise BaseMismatchError(
                f"the run {run.folder} was trained on a base with {key} {trained[key]}, "
                f"but {base.name} has {config[key]}",
                f"pass the base it was trained on ({trained.get('name')})",
            )
    recorded = adapter_config(run.adapter).get("base_model_name_or_path")
    if not named and recorded not in (None, base.name):
        raise BaseMismatchError(
            f"the adapter in {run.folder} was trained on '{recorded}', not on '{base.name}'",
            "correct base in the run's task.yaml, or pass the right base as --base",
        )


def _texts(run: Run) -> Sequence[str]:
    """Return a few prompts of the task, or sample sentences if its rows are no longer available."""
    for split in ("validation", "test", "train"):
        try:
            examples = load_splits(run.task, [split])[split]
        except (LoraFtError, UsageError):
            continue
        if examples:
            return [example.prompt for example in examples[:_ROWS]]
    return SENTENCES[:_ROWS]


@torch.inference_mode()
def _logits(model: torch.nn.Module, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return logits [rows, 8, vocabulary] for the same eight decoder tokens in each row."""
    special = model_generation(model).special
    inputs, mask = (torch.from_numpy(array) for array in ragged(ids, special.pad))
    start = torch.tensor([[special.start, *ids[0][:7]]]).repeat(len(ids), 1)
    return model(input_ids=inputs, attention_mask=mask, decoder_input_ids=start).logits

"""The PyTorch side of an export: rows of the task, PyTorch's answers to them, and calibration rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.progress import Progress
from lora_ft.core.sample_prompts import SENTENCES
from lora_ft.core.tokenizer import Tokenizer, by_length, ragged
from lora_ft.data.splits import Example, load_splits
from lora_ft.export.bundle.assemble import BundleMetadata
from lora_ft.export.bundle.provenance import Provenance, Score
from lora_ft.export.onnx.smoothquant import Sample
from lora_ft.export.parity import Reference
from lora_ft.export.runtime.phrases import Phrases
from lora_ft.models.generation import model_generation, without_defaults
from lora_ft.models.loading import MAX_NEW_TOKENS, SOURCE_LENGTH
from lora_ft.publishing.model_card import Facts
from lora_ft.publishing.redaction import base_name, data_sources, without_paths
from lora_ft.runs.records import score_values
from lora_ft.tasks.schema import SplitName, Task

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

_BATCH = 8
_CALIBRATION_ROWS = 32


def codec_of(task: Task | None) -> str:
    """Return the name of a task's codec."""
    return task.codec if task else "none"


def bundle_metadata(task: Task | None, base: str, adapter: str, base_options: Mapping[str, Any]) -> BundleMetadata:
    """Return the metadata of a bundle.

    Args:
        task: Task of the model, or None.
        base: Name of the base.
        adapter: Name of the adapter, or "".
        base_options: Generation settings of the base. Those of the task take precedence.
    """
    options: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS} | dict(base_options)
    options |= task.generation_options() if task else {}
    labels = options.pop("labels", ())
    return BundleMetadata(
        base=base,
        adapter=adapter,
        template=task.prompt if task else None,
        source_length=task.lengths.source if task else SOURCE_LENGTH,
        generation=options,
        versions={package: version(package) for package in ("torch", "transformers", "peft")},
        chat=task.chat_settings() if task else None,
        labels=tuple(labels),
        provenance=Provenance(
            task=task.name if task else "",
            base=base_name(base),
            adapter=without_paths(adapter),
            license=task.card.license or "" if task else "",
            data=data_sources(task) if task else (),
        ),
    )


def scores_of(facts: Facts) -> list[Score]:
    """Return the scores of `evaluate`, or else the validation score that chose the checkpoint."""
    scores = [
        Score(metric, split, entry["rows"], estimate["mean"], estimate["low"], estimate["high"])
        for split, entry in facts.scores.items()
        for metric, estimate in score_values(entry["scores"]).items()
    ]
    best, rows = facts.metrics["best_metric"], facts.metrics["rows"]["validation"]
    if not scores and best is not None:
        return [Score(facts.task.train.metric_for_best_model, "validation", rows, best)]
    return scores


def examples_of(task: Task | None, split: SplitName, progress: Progress) -> Sequence[Example]:
    """Return rows of a task, or none if they are not available on this machine."""
    if task is None:
        return ()
    try:
        return load_splits(task, [split])[split]
    except (UsageError, LoraFtError) as error:
        progress.note(f"the task's {split} rows are not available ({error.message}); using built-in sentences")
        return ()


def references_of(
    model: T5ForConditionalGeneration,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    origin: BundleMetadata,
    progress: Progress,
) -> Iterator[Reference]:
    """Yield batches of PyTorch's greedy answers with their logits, in float32 on the CPU.

    Raises:
        LoraFtError: Logits are NaN or infinite.
    """
    model = model.to("cpu", torch.float32).eval()
    special = model_generation(model).special
    rows, limit = tokenizer.encode(prompts, origin.source_length), origin.generation["max_new_tokens"]
    progress.stage("comparing with PyTorch", len(rows))
    finished = 0
    for batch in by_length(rows, _BATCH):
        ids, mask = (torch.from_numpy(array) for array in ragged([rows[i] for i in batch], special.pad))
        with torch.inference_mode(), without_defaults(model, special):
            generated = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, num_beams=1
            )
            logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=generated[:, :-1]).logits
        if not logits.isfinite().all():
            name = origin.adapter or origin.base
            raise LoraFtError(
                f"the logits of {name} are NaN or infinite, since some of its weights are too large",
                "train it again with a lower learning rate, or download the checkpoint again",
            )
        yield Reference(ids.numpy(), mask.numpy(), generated[:, 1:].numpy(), logits.float().numpy(), limit)
        finished += len(batch)
        progress.advance(finished)


def phrases_of(task: Task | None, tokenizer: Tokenizer, start: int) -> Phrases:
    """Return the phrases that the answers of a task's training rows share.

    Args:
        task: Task of the rows, or None.
        tokenizer: Tokenizer of the task.
        start: First token of the decoder.

    Raises:
        UsageError, LoraFtError: There is no task, or its training rows are not available.
    """
    if task is None:
        raise UsageError("--drafts requires the training rows of a task", "export a run, or leave out --drafts")
    targets = [example.target for example in load_splits(task, ["train"]).train]
    return Phrases.count(tokenizer.encode_targets(targets, task.lengths.target), start)


def samples_of(task: Task | None, tokenizer: Tokenizer, start: int, progress: Progress) -> Iterator[Sample]:
    """Yield calibration rows: training rows of the task, or built-in sentences that are their own targets.

    Args:
        task: Task of the rows, or None.
        tokenizer: Tokenizer of the task.
        start: First token of the decoder.
        progress: Receives stages and steps.
    """
    pairs = [(example.prompt, example.target) for example in examples_of(task, "train", progress)]
    pairs = pairs[:_CALIBRATION_ROWS] or [(sentence, sentence) for sentence in SENTENCES]
    sources = tokenizer.encode([source for source, _ in pairs], task.lengths.source if task else SOURCE_LENGTH)
    targets = tokenizer.encode_targets([target for _, target in pairs], task.lengths.target if task else MAX_NEW_TOKENS)
    for source, target in zip(sources, targets, strict=True):
        yield Sample(np.array(source), np.array([start, *target[:-1]]))

"""Answers of PyTorch and transformers to a checkpoint, and bundles written from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration
from transformers.utils import logging

from lora_ft.core.codecs import codec_named
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.core.tokenizer import ragged as filled
from lora_ft.export.bundle.assemble import BundleMetadata
from lora_ft.export.bundle.publish import Selection, write_bundle
from lora_ft.export.bundle.source import ExportSource
from lora_ft.export.onnx.smoothquant import Sample
from lora_ft.export.parity import Reference, Report

PAD, END = 0, 1
SPECIAL = SpecialTokens(PAD, (END,), PAD)
ORIGIN = BundleMetadata(
    base="tiny",
    adapter="say",
    template="say: {text}",
    source_length=48,
    generation={"max_new_tokens": 12},
    versions={"torch": "2"},
)
TEXTS = ("say: a", "say: hello there", "say: some words, and then some more of them", "no prompt", "X", "9 8 7 6")


def torch_model(folder: Path) -> T5ForConditionalGeneration:
    """Load a checkpoint with transformers."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()


def ragged(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows of ids padded to one length, mask)."""
    return filled(rows, PAD)


def torch_greedy(
    model: T5ForConditionalGeneration, ids: np.ndarray, mask: np.ndarray, limit: int, least: int = 0
) -> np.ndarray:
    """Return transformers' greedy tokens, without the start token."""
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    limits = {"max_new_tokens": limit} | ({"min_new_tokens": least} if least else {})
    with torch.inference_mode():
        return model.generate(**inputs, **limits, do_sample=False, num_beams=1)[:, 1:].numpy()


def torch_logits(
    model: T5ForConditionalGeneration, ids: np.ndarray, mask: np.ndarray, decoder_ids: np.ndarray
) -> np.ndarray:
    """Return the logits of every decoder position from one call."""
    with torch.inference_mode():
        out = model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            decoder_input_ids=torch.from_numpy(decoder_ids),
            use_cache=False,
        )
    return out.logits.numpy()


def shifted(tokens: np.ndarray) -> np.ndarray:
    """Return the decoder input for `tokens`: the start token, then all but the last token."""
    return np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=PAD)


def references(folder: Path, texts: Sequence[str] = TEXTS, limit: int = 12, batch: int = 4) -> Iterator[Reference]:
    """Yield PyTorch's answers to `texts`, batch by batch."""
    model, tokenizer = torch_model(folder), Tokenizer(folder / "tokenizer.json")
    rows = tokenizer.encode(texts, ORIGIN.source_length)
    for start in range(0, len(rows), batch):
        ids, mask = ragged(rows[start : start + batch])
        tokens = torch_greedy(model, ids, mask, limit)
        yield Reference(ids, mask, tokens, torch_logits(model, ids, mask, shifted(tokens)), limit)


def make_bundle(checkpoint: Path, out: Path, **changes: Any) -> Report:
    """Write the bundle of a tiny checkpoint; `changes` are fields of its source, or arguments of `write_bundle`."""
    answers, codec = changes.pop("references", None), codec_named(changes.pop("codec", "none"))
    origin = {name: changes.pop(name) for name in tuple(changes) if hasattr(ORIGIN, name)}
    rng = np.random.default_rng(0)
    samples = [Sample(rng.integers(3, 60, 12), np.array([PAD, *rng.integers(3, 60, 6)])) for _ in range(8)]
    source = ExportSource(
        checkpoint,
        Tokenizer(checkpoint / "tokenizer.json", codec),
        replace(ORIGIN, **origin),
        references(checkpoint) if answers is None else answers,
        changes.pop("probe", None) or next(references(checkpoint)),
        changes.pop("samples", samples),
        changes.pop("scaled", None),
    )
    selection = {name: changes.pop(name) for name in ("precisions", "choose") if name in changes}
    return write_bundle(source, out, selection=Selection(**selection), **changes).report


def redraw(folder: Path, seed: int, end: float = 1.0) -> Path:
    """Write new weights into a checkpoint: independent of the transformers version, and all with an effect.

    In transformers' initialization norms are ones and position biases hardly change a logit, so a mix-up of two weights
    would go unnoticed.

    Args:
        folder: Folder of the checkpoint.
        seed: Seed of the weights.
        end: Factor of the head's row for </s>, so that some rows end early.
    """
    path = folder / "model.safetensors"
    rng = np.random.default_rng(seed)
    shapes = {name: tensor.shape for name, tensor in sorted(load_file(path).items())}
    weights: dict[str, np.ndarray] = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        if "norm" in name:
            weights[name] = 1 + weight / 4
        elif "block" in name and "relative_attention_bias" not in name:
            weights[name] = weight / np.float32(np.sqrt(weight.shape[1]))
    if "lm_head.weight" in weights:
        weights["lm_head.weight"][END] *= end
    tensors = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def entries(folder: Path) -> set[str]:
    """Return the names of all entries of a folder, including hidden ones."""
    return {path.name for path in folder.iterdir()}

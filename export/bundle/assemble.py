"""Write the files of a bundle: graphs and weights in one precision, tokenizer, prompt and manifest."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from lora_ft.core.hardware import allowed_cpus
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.core.trie import Trie
from lora_ft.export.bundle.provenance import UNKNOWN, Provenance, properties, stamp
from lora_ft.export.bundle.sbom import write_sbom
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.checkpoint.generation_config import read_generation
from lora_ft.export.checkpoint.reader import Checkpoint
from lora_ft.export.checkpoint.tensor_checks import check_names, check_numbers
from lora_ft.export.onnx.graph import WeightFile
from lora_ft.export.onnx.graphs import (
    decoder_model,
    device_step_model,
    encoder_model,
    log_softmax_model,
    reorder_cache_model,
    top_k_model,
)
from lora_ft.export.onnx.model_parts import ModelParts
from lora_ft.export.precision import parse
from lora_ft.export.runtime import manifest
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.phrases import NO_PHRASES, Phrases
from lora_ft.export.runtime.session import choose_provider
from lora_ft.export.runtime.settings import Settings

_PACKAGES = ("lora-ft", "numpy", "onnx", "onnxruntime", "tokenizers")


@dataclass(frozen=True)
class BundleMetadata:
    """Origin, prompt and options of a bundle.

    Attributes:
        base: Name of the base model.
        adapter: Name of the merged adapter, or "".
        template: Prompt of the task, or None.
        source_length: Maximum prompt length, in tokens.
        generation: Generation settings by the names of `Options`, including max_new_tokens.
        versions: Versions of the packages that trained and loaded the model (torch, transformers, peft).
        chat: Chat settings, or None.
        labels: The only allowed answers, or () if answers are unrestricted.
        provenance: Metadata for the graphs.
        phrases: Phrases of training answers to draft from, which become part of the bundle.
    """

    base: str
    adapter: str
    template: str | None
    source_length: int
    generation: Mapping[str, Any]
    versions: Mapping[str, str]
    chat: Mapping[str, Any] | None = None
    labels: tuple[str, ...] = ()
    provenance: Provenance = UNKNOWN
    phrases: Phrases = NO_PHRASES


def read_model(folder: Path) -> tuple[Architecture, Checkpoint]:
    """Return a checkpoint's architecture and weights.

    Raises:
        UsageError: The model family is not supported.
        LoraFtError: A weight file is damaged, or its tensors do not match config.json.
    """
    checkpoint = Checkpoint(folder)
    architecture = replace(Architecture.read(checkpoint.config, folder), special=read_generation(folder).special)
    check_names(checkpoint, architecture)
    check_numbers(checkpoint)
    return architecture, checkpoint


def rescaled(architecture: Architecture, scaled: bool) -> Architecture:
    """Return the architecture with or without scaling of the hidden state before the head."""
    return replace(architecture, output_scale=architecture.d_model**-0.5 if scaled else 1.0)


def assemble(
    folder: Path,
    parts: ModelParts,
    precision: str,
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    origin: BundleMetadata,
    adapted: ModelParts | None = None,
) -> Generator:
    """Write all files of a bundle except its manifest, and load the bundle.

    Args:
        folder: Empty folder.
        parts: Parts of the model.
        precision: Name of the model's precision.
        config: Content of the model's config.json.
        tokenizer: Tokenizer of the prompts, with their codec.
        origin: Origin, prompt and options.
        adapted: For a bank, the parts with adapters on their layers.
    """
    allowed = Settings.of(prompt_of(origin, tokenizer), {}, tokenizer).allowed
    with WeightFile(folder / manifest.WEIGHTS) as file:
        models = {
            "encoder": encoder_model(parts, file),
            "decoder": decoder_model(parts, file),
            "step": decoder_model(parts, file, calls="step"),
            "draft": decoder_model(parts, file, calls="draft"),
            "log_softmax": log_softmax_model(parts),
            "top_k": top_k_model(parts),
            "reorder_cache": reorder_cache_model(parts),
        }
        if allowed:
            end = parts.architecture.special.closed_by(tokenizer.closing).end
            models["labels"] = decoder_model(parts, file, calls="step", tokens=Trie(allowed, end).tokens)
        if not adapted and "cuda" in parse(precision).providers:
            models["device_step"] = device_step_model(parts, file)
        if adapted:
            models |= {
                f"{manifest.ADAPTED}encoder": encoder_model(adapted, file),
                f"{manifest.ADAPTED}decoder": decoder_model(adapted, file),
                f"{manifest.ADAPTED}step": decoder_model(adapted, file, calls="step"),
            }
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    tokenizer.save(folder / "tokenizer.json")
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", _generation(parts.architecture.special, origin))
    _write(folder / "prompt.json", prompt_of(origin, tokenizer))
    content: dict[str, Any] = {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "base": origin.base,
        "adapter": origin.adapter,
        "precision": precision,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES} | dict(origin.versions),
    }
    if len(origin.phrases):
        content[manifest.DRAFTS] = origin.phrases.write(folder / manifest.PHRASES)
    return Generator(folder, content, allowed_cpus(), choose_provider("auto", precision))


def prompt_of(origin: BundleMetadata, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of prompt.json."""
    prompt = {"template": origin.template, "codec": tokenizer.codec.name, "source_length": origin.source_length}
    special = {"chat": origin.chat, "labels": origin.labels}
    return prompt | {name: value for name, value in special.items() if value}


def seal(
    assembled: Path,
    content: Mapping[str, Any],
    staging: Path,
    *,
    family: str,
    prompt_lookup: bool,
    provenance: Provenance = UNKNOWN,
) -> None:
    """Copy an assembled bundle and write its manifest, with the hash of every file.

    Args:
        assembled: Folder from `assemble`.
        content: Entries of the manifest.
        staging: Folder to copy to.
        family: Name of the model family.
        prompt_lookup: Whether prompt lookup is on by default.
        provenance: Metadata for the graphs and the bill of materials.
    """
    shutil.copytree(assembled, staging, dirs_exist_ok=True)
    stamp(staging, properties(provenance, content))
    path = staging / "generation_config.json"
    _write(path, json.loads(path.read_text(encoding="utf-8")) | {"prompt_lookup": prompt_lookup})
    write_sbom(staging, family, provenance, content)
    _write(staging / manifest.NAME, {**content, "files": manifest.describe_files(staging)})


def _generation(special: SpecialTokens, origin: BundleMetadata) -> dict[str, Any]:
    """Return the content of generation_config.json: special tokens and generation settings."""
    return {**special.as_config(), **origin.generation, "prompt_lookup": False}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

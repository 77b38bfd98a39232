"""The files of a bundle: its graphs and weights in some precision, its tokenizer and prompt, its manifest."""

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
from lora_ft.export.bundle.provenance import UNKNOWN, Provenance, properties, stamp
from lora_ft.export.bundle.sbom import write_sbom
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.checkpoint.generation_config import read_generation
from lora_ft.export.checkpoint.reader import Checkpoint
from lora_ft.export.checkpoint.tensor_checks import check_names, check_numbers
from lora_ft.export.onnx.graph import WeightFile
from lora_ft.export.onnx.graphs import decoder_model, encoder_model, log_softmax_model, reorder_cache_model, top_k_model
from lora_ft.export.onnx.t5 import T5
from lora_ft.export.runtime import manifest
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.session import choose_provider

_PACKAGES = ("lora-ft", "numpy", "onnx", "onnxruntime", "tokenizers")


@dataclass(frozen=True)
class BundleMetadata:
    """Where a bundle comes from, for its manifest and its prompt.

    Attributes:
        base: name of the base model.
        adapter: name of the adapter merged into it, or "".
        template: the task's prompt, or None.
        source_length: most tokens of a prompt.
        generation: how it answers, by the names of `Options`; max_new_tokens is among them.
        versions: of packages that took part before (torch, transformers, peft).
        chat: what going on with a chat takes besides the prompt, or None.
        labels: the only answers it may give, or none where it answers freely.
        provenance: what its graphs say of it.
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


def read_model(folder: Path) -> tuple[Architecture, Checkpoint]:
    """A checkpoint's architecture and weights.

    Raises:
        UsageError: it is not of the T5 family.
        LoraFtError: a weight file is damaged, or its tensors are not those of its config.json.
    """
    checkpoint = Checkpoint(folder)
    architecture = replace(Architecture.read(checkpoint.config, folder), special=read_generation(folder).special)
    check_names(checkpoint, architecture)
    check_numbers(checkpoint)
    return architecture, checkpoint


def rescaled(architecture: Architecture, scaled: bool) -> Architecture:
    """The architecture with the hidden state scaled before the head, or not, as PyTorch does it here."""
    return replace(architecture, output_scale=architecture.d_model**-0.5 if scaled else 1.0)


def assemble(
    folder: Path,
    t5: T5,
    precision: str,
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    origin: BundleMetadata,
    adapted: T5 | None = None,
) -> Generator:
    """Write everything of a bundle but its manifest, and open it.

    Args:
        folder: an empty folder.
        t5: the model.
        precision: the name of how its weights are stored.
        config: the model's config.json.
        tokenizer: the one its prompts are encoded with, and the codec.
        origin: what to say of it, and its prompt.
        adapted: of a bank: the model whose graphs take adapters.
    """
    with WeightFile(folder / manifest.WEIGHTS) as file:
        models = {
            "encoder": encoder_model(t5, file),
            "decoder": decoder_model(t5, file),
            "step": decoder_model(t5, file, step=True),
            "normal": log_softmax_model(t5),
            "best": top_k_model(t5),
            "select": reorder_cache_model(t5),
        }
        if adapted:
            models |= {
                f"{manifest.ADAPTED}encoder": encoder_model(adapted, file),
                f"{manifest.ADAPTED}decoder": decoder_model(adapted, file),
                f"{manifest.ADAPTED}step": decoder_model(adapted, file, step=True),
            }
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    tokenizer.save(folder / "tokenizer.json")
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", _generation(t5.architecture.special, origin))
    _write(folder / "prompt.json", prompt_of(origin, tokenizer))
    content = {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "base": origin.base,
        "adapter": origin.adapter,
        "precision": precision,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES} | dict(origin.versions),
    }
    return Generator(folder, content, allowed_cpus(), choose_provider("auto", precision))


def prompt_of(origin: BundleMetadata, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a prompt.json says."""
    prompt = {"template": origin.template, "codec": tokenizer.codec.name, "source_length": origin.source_length}
    special = {"chat": origin.chat, "labels": origin.labels}
    return prompt | {name: value for name, value in special.items() if value}


def seal(
    assembled: Path,
    content: Mapping[str, Any],
    staging: Path,
    *,
    prompt_lookup: bool,
    provenance: Provenance = UNKNOWN,
) -> None:
    """Copy an assembled bundle and write its manifest, which binds every file.

    Args:
        assembled: folder from `assemble`.
        content: of the manifest.
        staging: folder to make it in.
        prompt_lookup: whether that is on by default.
        provenance: of the model, for its graphs and its bill of materials.
    """
    shutil.copytree(assembled, staging, dirs_exist_ok=True)
    stamp(staging, properties(provenance, content))
    path = staging / "generation_config.json"
    _write(path, json.loads(path.read_text(encoding="utf-8")) | {"prompt_lookup": prompt_lookup})
    write_sbom(staging, provenance, content)
    _write(staging / manifest.NAME, {**content, "files": manifest.describe_files(staging)})


def _generation(special: SpecialTokens, origin: BundleMetadata) -> dict[str, Any]:
    """Return the special tokens and the generation settings, by transformers' names."""
    return {**special.as_config(), **origin.generation, "prompt_lookup": False}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

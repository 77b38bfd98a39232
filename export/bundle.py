"""A bundle from a checkpoint: build the graphs, compare them with PyTorch's answers, publish the folder or nothing."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from export.checkpoint import Checkpoint
from export.files import refuse_existing, staged_folder
from export.parity import Reference, Report, compare, require
from export.runtime import manifest
from export.runtime.cpu import allowed_cpus
from export.runtime.generator import Generator
from export.runtime.text import Tokenizer
from export.t5 import T5

_PACKAGES = ("lora-ft", "numpy", "onnx", "onnxruntime", "tokenizers")


@dataclass(frozen=True)
class Origin:
    """Where a bundle comes from, for its manifest and its prompt.

    Attributes:
        base: name of the base model.
        adapter: name of the adapter merged into it, or "".
        template: the task's prompt, or None.
        source_length: most tokens of a prompt.
        max_new_tokens: most tokens of an answer.
        versions: of packages that took part before (torch, transformers, peft).
    """

    base: str
    adapter: str
    template: str | None
    source_length: int
    max_new_tokens: int
    versions: Mapping[str, str]


def write_bundle(
    checkpoint: Path,
    tokenizer: Tokenizer,
    origin: Origin,
    references: Iterable[Reference],
    out: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> Report:
    """Build, verify and publish the fp32 bundle of a checkpoint.

    Args:
        checkpoint: transformers folder (config.json, *.safetensors).
        tokenizer: the one its prompts are encoded with.
        origin: what to say of it, and its prompt.
        references: PyTorch's answers on rows of the task; taken lazily, batch by batch.
        out: folder to make.
        overwrite: replace `out` where it exists.
        progress: told the name of each stage as it begins.

    Returns:
        The comparison with PyTorch, which passed.

    Raises:
        UsageError: `out` exists, or the checkpoint is no T5.
        LoraFtError: the graphs differ from PyTorch; nothing is left behind.
    """
    refuse_existing(out, overwrite=overwrite)
    with staged_folder(out, overwrite=overwrite) as staging:
        progress("building the graphs")
        model = T5(Checkpoint(checkpoint))
        onnx.save(model.encoder(), staging / "encoder.onnx")
        onnx.save(model.decoder(), staging / "decoder.onnx")
        tokenizer.save(staging / "tokenizer.json")
        shutil.copyfile(checkpoint / "config.json", staging / "config.json")
        _write(staging / "generation_config.json", _generation(model.weights.config, origin))
        _write(staging / "prompt.json", {"template": origin.template, "source_length": origin.source_length})
        content: dict[str, Any] = {
            "format": manifest.FORMAT,
            "version": manifest.VERSION,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "base": origin.base,
            "adapter": origin.adapter,
            "precision": "fp32",
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES} | dict(origin.versions),
            "files": manifest.describe_files(staging),
        }
        report = compare(Generator(staging, content, allowed_cpus()), references)
        require(report)
        _write(staging / manifest.NAME, content | {"parity": report.as_dict()})
    return report


def _generation(config: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """The generation settings of a T5, by transformers' names."""
    return {
        "decoder_start_token_id": config.get("decoder_start_token_id") or 0,
        "eos_token_id": config.get("eos_token_id") or 1,
        "pad_token_id": config.get("pad_token_id") or 0,
        "max_new_tokens": origin.max_new_tokens,
    }


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""Layouts of an exported model for consumers other than this project's runtime, one module each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.constraint import SCHEMA
from lora_ft.core.errors import LoraFtError
from lora_ft.export.layouts import optimum, single
from lora_ft.export.onnx.model_parts import ModelParts
from lora_ft.export.parity import Reference, identical_rows
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.manifest import LAYOUT_RECORD, describe

_COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")
_OURS = ("prompt_lookup", "seed", "mbr", "utility", SCHEMA)  # settings that no other consumer knows

Write = Callable[[Path, ModelParts], None]
# (folder, input_ids [b,s], attention_mask [b,s], maximum new tokens) -> greedy tokens [b,n]
Answer = Callable[[Path, np.ndarray, np.ndarray, int], np.ndarray]

LAYOUTS: dict[str, tuple[Write, tuple[Answer, ...]]] = {
    "optimum": (optimum.write, (optimum.answer_split, optimum.answer_merged)),
    "single": (single.write, (single.answer,)),
}


def unsupported(name: str, generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation settings that change answers but that no consumer of a layout can apply."""
    return single.unsupported(generation) if name == "single" else {}


def differences(name: str, generation: Mapping[str, Any], labels: Sequence[str], codec: str) -> list[str]:
    """Return the ways in which answers of a layout may differ from those of the bundle, as phrases.

    Args:
        name: A key of LAYOUTS.
        generation: Settings of the bundle, by the names of `Options`.
        labels: The only allowed answers of the bundle, or () if answers are unrestricted.
        codec: Name of the task's codec.
    """
    lines = [f"{key} = {value!r} is not applied" for key, value in unsupported(name, generation).items()]
    if name == "optimum" and generation.get("num_beams", 1) > 1:
        lines.append(f"transformers.js ignores num_beams = {generation['num_beams']} (4.3 has no beam search)")
    if generation.get(SCHEMA):
        lines.append("answers are unrestricted: the task's json_schema is not enforced")
    if name != "single" and generation.get("mbr", 0) > 1:
        lines.append(f"mbr = {generation['mbr']} is not applied")
    if labels:
        lines.append(f"answers are unrestricted: the task's {len(labels)} labels are not enforced")
    if codec != "none":
        lines.append(f"texts use the codec {codec}: encode prompts and decode answers with lora-ft")
    return lines


def write_layout(
    name: str, folder: Path, parts: ModelParts, bundle: Generator, checkpoint: Path, references: Iterable[Reference]
) -> dict[str, Any]:
    """Write a model in another layout and check that it generates the same tokens as the bundle.

    Args:
        name: A key of LAYOUTS.
        folder: Empty folder.
        parts: Parts of the model in the chosen precision.
        bundle: The same model as a bundle, whose files are copied and whose answers are compared.
        checkpoint: Checkpoint, whose other tokenizer files are copied.
        references: Batches to compare on.

    Returns:
        Entries of the layout's record: its name, its generation settings, and differences from the bundle's answers.

    Raises:
        LoraFtError: The layout generates different tokens than the bundle.
    """
    write, answers = LAYOUTS[name]
    for file in _COPIED:
        source = bundle.folder / file if (bundle.folder / file).is_file() else checkpoint / file
        if source.is_file():
            shutil.copyfile(source, folder / file)
    generation = json.loads((bundle.folder / "generation_config.json").read_text(encoding="utf-8"))
    lacking = unsupported(name, generation)
    settings = {key: value for key, value in generation.items() if key not in (*_OURS, *lacking)}
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write(folder, parts.portable())
    check_layout(name, folder, answers, bundle, references)
    differing = differences(name, generation, bundle.labels, bundle.tokenizer.codec.name)
    return {"layout": name, "generation": settings, "differences": differing}


def check_layout(
    name: str, folder: Path, answers: Sequence[Answer], bundle: Generator, references: Iterable[Reference]
) -> None:
    """Raise LoraFtError unless a layout generates the same tokens as the bundle.

    Args:
        name: Name of the layout, for the message.
        folder: Folder of the layout.
        answers: Functions that generate like the layout's consumers.
        bundle: The same model as a bundle.
        references: Batches to compare on.
    """
    for reference in references:
        ids, mask, limit = reference.input_ids, reference.attention_mask, reference.max_new_tokens
        tokens = bundle.generate_ids(ids, mask, max_new_tokens=limit)
        for answer in answers:
            generated = answer(folder, ids, mask, limit)
            if identical_rows(generated, tokens, bundle.special) < len(tokens):
                raise LoraFtError(
                    f"the layout {name} ({answer.__name__}) differs from the bundle; nothing was written",
                    "please report this with the output of `lora-ft doctor`",
                )


def record_layout(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a finished layout.

    Args:
        folder: Finished folder of the layout.
        record: Entries of the record besides the files, including the result of `write_layout`.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = {**record, "files": {str(path.relative_to(folder)): describe(path) for path in files}}
    (folder / LAYOUT_RECORD).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

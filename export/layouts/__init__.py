"""Other shapes of an exported model, for consumers that are not this project's runtime; one file a layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import LoraFtError
from export.layouts import optimum, single
from export.parity import Reference, identical_rows
from export.runtime.generator import Generator
from export.runtime.manifest import describe
from export.t5 import T5

RECORD = "lora-ft.json"  # what was exported and how it was checked; nobody but people reads it
_COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")

Write = Callable[[Path, T5], None]
# (folder, input_ids [b,s], attention_mask [b,s], most new tokens) -> greedy tokens [b,n]
Answer = Callable[[Path, np.ndarray, np.ndarray, int], np.ndarray]

LAYOUTS: dict[str, tuple[Write, tuple[Answer, ...]]] = {
    "optimum": (optimum.write, (optimum.answer_split, optimum.answer_merged)),
    "single": (single.write, (single.answer,)),
}


def write_layout(
    name: str, folder: Path, t5: T5, bundle: Generator, checkpoint: Path, references: Iterable[Reference],
    record: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write a model in another layout and check that it generates what the bundle does.

    Args:
        name: of LAYOUTS.
        folder: an empty folder.
        t5: the model in the precision that was chosen.
        bundle: the same as a bundle, to take files from and to compare with.
        checkpoint: folder that other files of the tokenizer are copied from.
        references: batches to try it on.
        record: what to write down beside the files.

    Raises:
        LoraFtError: it generates something else.
    """
    write, answers = LAYOUTS[name]
    for file in _COPIED:
        source = bundle.folder / file if (bundle.folder / file).is_file() else checkpoint / file
        if source.is_file():
            shutil.copyfile(source, folder / file)
    settings = json.loads((bundle.folder / "generation_config.json").read_text(encoding="utf-8"))
    for ours in ("prompt_lookup", "seed"):
        settings.pop(ours, None)
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write(folder, t5.portable())
    for reference in references:
        ids, mask, limit = reference.input_ids, reference.attention_mask, reference.max_new_tokens
        tokens = bundle.generate_ids(ids, mask, max_new_tokens=limit)
        for answer in answers:
            made = answer(folder, ids, mask, limit)
            if identical_rows(made, tokens, bundle.special) < len(tokens):
                raise LoraFtError(
                    f"the layout {name} ({answer.__name__}) differs from the bundle; nothing was written",
                    "please report this with the output of `lora-ft doctor`",
                )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = {**record, "layout": name, "files": {str(path.relative_to(folder)): describe(path) for path in files}}
    (folder / RECORD).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""Checks that a checkpoint has exactly the expected tensors, with the right shapes and finite values.

transformers initializes missing tensors randomly, ties a missing head and skips unknown tensors, with a warning at
most. Here the expected tensors are derived from the config, and the files are compared with them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_ft.core.errors import LoraFtError
from lora_ft.export.families import family_of

if TYPE_CHECKING:
    from lora_ft.export.checkpoint.architecture import Architecture
    from lora_ft.export.checkpoint.reader import Checkpoint

FLOATS = ("F64", "F32", "F16", "BF16")
_CHUNK = 1 << 22  # values per check, so that their float32 copy fits into the CPU cache
_SHOWN = 3


def check_names(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Compare names, shapes and dtypes of the tensors with the config, without reading any weights.

    Raises:
        LoraFtError: Tensors are missing, unknown, of the wrong shape, or not stored as floats.
    """
    where = checkpoint.folder
    actual = checkpoint.described
    family = architecture.family
    expected = dict(family.tensor_shapes(architecture))
    table = (architecture.vocabulary, architecture.d_model)
    embedding, head, *copies = (f"{layer}.weight" for layer in (family.EMBEDDING, family.HEAD, *family.COPIES))
    tied = checkpoint.config.get("tie_word_embeddings", True) is not False
    same = (embedding, *copies, head) if tied else (embedding, *copies)
    expected[next((name for name in same if name in actual), embedding)] = table
    optional = dict.fromkeys((embedding, head, *copies), table)
    if not tied:
        expected[head] = table
    missing = [name for name in expected if name not in actual]
    if missing:
        shard = f" ({len(actual)} tensors in {', '.join(file.name for file in checkpoint.files[:_SHOWN])})"
        raise LoraFtError(
            f"{where} lacks {listed(missing)}, which its config.json requires{shard}",
            "copy the whole checkpoint again, or correct config.json (num_layers, feed_forward_proj, "
            "tie_word_embeddings)",
        )
    unknown = [name for name in actual if name not in expected and name not in optional and name not in family.UNUSED]
    if unknown:
        raise LoraFtError(
            f"{where} has {listed(unknown)}, which a {architecture.kind} model with its config.json does not have",
            _remedy(unknown),
        )
    for name, (kind, shape) in actual.items():
        needed = expected.get(name) or optional.get(name)
        if needed is not None and shape != needed:
            raise LoraFtError(
                f"{where}: the shape of {name} does not match config.json (got {by(shape)}, expected {by(needed)})",
                "copy the config.json that belongs to the weights (d_model, d_kv, d_ff, num_heads, vocab_size)",
            )
        if needed is not None and kind not in FLOATS:
            raise LoraFtError(
                f"{where}: {name} is stored as {kind} (supported: {', '.join(FLOATS)})",
                "use a checkpoint that is not quantized",
            )


def check_numbers(checkpoint: Checkpoint) -> None:
    """Read every weight once. Check that it is finite in float32 and that copies of the embedding are equal to it.

    Raises:
        LoraFtError: A weight is NaN or infinite, or a copy of the embedding differs.
    """
    family = family_of(checkpoint.config["model_type"])
    for name in checkpoint.names:
        if name in family.UNUSED:
            continue
        if odd := not_finite(checkpoint.stored(name)):
            raise LoraFtError(
                f"{checkpoint.folder}: {odd:,} of {checkpoint.stored(name).size:,} values of {name} are NaN or "
                "infinite",
                "copy the checkpoint again; if training produced these values, use an earlier checkpoint",
            )
    names = [f"{layer}.weight" for layer in (family.EMBEDDING, *family.COPIES)]
    copies = [name for name in names if name in checkpoint]
    for name in copies[1:]:
        if not np.array_equal(checkpoint.stored(copies[0]), checkpoint.stored(name)):
            raise LoraFtError(
                f"{checkpoint.folder}: {name} differs from {copies[0]}, but the model has a single embedding",
                "save the model with its embeddings tied",
            )


def not_finite(stored: np.ndarray) -> int:
    """Return the number of values that are NaN or infinite in float32. A uint16 array holds bfloat16 bits."""
    count = 0
    flat = stored.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        if chunk.dtype == np.uint16:
            count += int(np.count_nonzero((chunk & 0x7F80) == 0x7F80))
            continue
        with np.errstate(all="ignore"):
            # Fast path without a copy: a finite sum means finite numbers. Any other sum may just be an overflow.
            if chunk.dtype == np.float32 and np.isfinite(chunk.sum()):
                continue
            count += int(np.count_nonzero(~np.isfinite(chunk.astype(np.float32))))
    return count


def listed(names: Collection[str]) -> str:
    """Return the first few names and the number of the others, as text."""
    shown = ", ".join(list(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN:,} more tensors" if len(names) > _SHOWN else shown


def _remedy(unknown: Sequence[str]) -> str:
    if any(".lora_" in name or ".base_layer." in name for name in unknown):
        return "merge the adapter first (peft's merge_and_unload), then save the model"
    if any(name.startswith(("module.", "_orig_mod.", "model.")) for name in unknown):
        return "save the model itself, not its DDP or torch.compile wrapper"
    return "correct config.json (num_layers, feed_forward_proj), or save the model with its language-model head"


def by(shape: Sequence[int]) -> str:
    """Return a shape as text."""
    return " x ".join(map(str, shape)) or "()"

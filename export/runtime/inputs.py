"""Inputs of a generator, checked: texts, padded token ids, sizes of a config, and one text ready to be decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.generation_options import Options
from lora_ft.export.runtime.bank import RowAdapters
from lora_ft.export.runtime.settings import Settings

# A config with larger sizes is damaged (the largest T5 has 24 layers), and lists of such lengths would fill the memory.
_LARGEST = {"num_layers": 1_000, "num_decoder_layers": 1_000}


@dataclass(frozen=True)
class Prompted:
    """One text that is ready to be decoded.

    Attributes:
        ids: Token ids of the prompt, int64 [s].
        options: Options of its decoding.
        settings: Settings of its task.
        adapters: Its adapter, as that of a single row, or None.
        source_cut: True if the text was longer than the source length and was cut.
    """

    ids: np.ndarray
    options: Options
    settings: Settings
    adapters: RowAdapters | None
    source_cut: bool


def check_sizes(config: dict[str, Any], path: Path) -> None:
    """Raise LoraFtError if a size in config.json is missing or out of range."""
    for key in ("vocab_size", "num_layers", "num_heads", "d_kv", "num_decoder_layers"):
        value = config.get(key)
        if not (type(value) is int and 0 < value <= _LARGEST.get(key, 2**24)) and not (
            key == "num_decoder_layers" and value is None
        ):
            raise LoraFtError(f"{path}: {key} is not a valid size (got {value!r:.100})", "export the bundle again")


def listed(texts: str | Sequence[str]) -> list[str]:
    """Return texts as a list; a single str is one text.

    Raises:
        UsageError: An item is not a str.
    """
    several = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(several, 1):
        if not isinstance(text, str):
            raise UsageError(f"text {number} is not a str (got {type(text).__name__})", "pass texts")
    return several


def unmasked_rows(ids: np.ndarray, mask: np.ndarray, vocabulary: int) -> list[np.ndarray]:
    """Return the unmasked tokens of each row, given ids [b, s] and a mask [b, s].

    Positions are relative, so padding may be on either side, but a gap would change distances.
    """
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise UsageError(
            f"input_ids and attention_mask do not have the same shape [b, s] (got {ids.shape} and {mask.shape})",
            "pad rows to the same length",
        )
    if not np.issubdtype(ids.dtype, np.integer) or not np.isin(mask, (0, 1)).all():
        raise UsageError("input_ids are not integers, or attention_mask has values besides 0 and 1", "correct them")
    rows = []
    for number, (row, is_token) in enumerate(zip(ids, mask.astype(bool), strict=True), 1):
        places = np.flatnonzero(is_token)
        if not len(places) or places[-1] - places[0] >= len(places):
            state = "is all zeros" if not len(places) else "has a gap"
            raise UsageError(f"attention_mask of row {number} {state}", "put padding before or after the tokens")
        shown = row[places].astype(np.int64)
        if shown.min() < 0 or shown.max() >= vocabulary:
            raise UsageError(
                f"input_ids of row {number} are not in 0..{vocabulary - 1}", "use token ids of this vocabulary"
            )
        rows.append(shown)
    return rows


def flat_seed(seed: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return a seed as a tuple, so that numbers can be appended."""
    return seed if isinstance(seed, tuple) else (seed,)

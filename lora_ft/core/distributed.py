"""The processes that share one training, as torchrun and accelerate tell each of them."""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process; the first one writes and speaks."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))

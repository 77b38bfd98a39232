"""Rank and number of the processes of one training, from the variables that torchrun and accelerate set."""

from __future__ import annotations

import os


def rank() -> int:
    """Return the rank of this process, from 0. Only rank 0 writes files and prints."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))

"""Sizes of calls, rounded up, so that few CUDA graphs and few sets of buffers serve all calls."""

from __future__ import annotations

from dataclasses import dataclass, replace

ROOM, WIDTH = 64, 64  # smallest room and width, in tokens


@dataclass(frozen=True)
class Bucket:
    """Sizes of a decoder step, each a power of two.

    Attributes:
        rows: Rows of a batch.
        room: Answer tokens that fit in a row.
        width: Length that sources are padded to, in tokens.
    """

    rows: int
    room: int
    width: int

    @classmethod
    def of(cls, rows: int, room: int, width: int) -> Bucket:
        """Return the smallest bucket for these sizes."""
        return cls(_rounded(rows), _rounded(max(room, ROOM)), _rounded(max(width, WIDTH)))

    def grown(self) -> Bucket:
        """Return the bucket with twice the room."""
        return replace(self, room=2 * self.room)


def _rounded(size: int) -> int:
    """Return the smallest power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()

"""The server that the others of a benchmark are compared with.

A server that is slow alone would get a looser limit for each row, and its times at its own knee belong to a smaller
load. So later servers may share the limits of the reference, and all are also measured at the load of its knee.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """Figures of the first server that answered.

    Attributes:
        server: Its name.
        alone: Time of each row alone, in seconds.
        knee: Its knee, in requests per second; None if it held no load.
    """

    server: str
    alone: tuple[float, ...]
    knee: float | None

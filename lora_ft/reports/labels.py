"""Placement of labels beside points of a chart, so that they overlap neither markers nor each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

FONT = 12  # font size, in pixels
GAPS = (8, 14)  # distances from a point to its label, in pixels, in the order in which they are tried
Box = tuple[float, float, float, float]
"""x and y of the upper left corner, then of the lower right one, in pixels."""
Place = tuple[float, float]
"""x and y, in pixels."""


def width(text: str) -> float:
    """Return a high estimate of the width of a text, in pixels, since the browser chooses the font."""
    return FONT * sum(
        0.38 if c in "iIjlftr.,:;|!'()[]/ -" else 1.0 if c in "mwMW@%" or c > "⺀" else 0.66 for c in text
    )


def shortened(text: str, room: float) -> str:
    """Return the text with its middle replaced by an ellipsis if it is wider than `room` pixels."""
    keep = len(text)
    short = text
    while width(short) > room and keep > 2:
        keep -= 1
        short = f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"
    return short


def _free(box: Box, occupied: Iterable[Box], area: Box) -> bool:
    inside = area[0] <= box[0] and area[1] <= box[1] and box[2] <= area[2] and box[3] <= area[3]
    return inside and not any(
        box[0] < obstacle[2] and obstacle[0] < box[2] and box[1] < obstacle[3] and obstacle[1] < box[3]
        for obstacle in occupied
    )


def place(
    text: str,
    at: Place,
    occupied: Sequence[Box],
    area: Box,
    rivals: Sequence[Place] = (),
    gaps: Sequence[float] = GAPS,
) -> Box | None:
    """Return a box for a label next to a point, or None if there is no room.

    Args:
        text: Text of the label.
        at: Position of the point, in pixels.
        occupied: Boxes that the label may not overlap.
        area: Box that the label may not leave.
        rivals: Positions of other points, to none of which the label may be nearer than to its own.
        gaps: Distances from the point to try, in pixels.
    """
    text_width, text_height = width(text), FONT + 2
    for gap in gaps:
        x_right, x_left, y_above, y_below = (
            at[0] + gap,
            at[0] - gap - text_width,
            at[1] - gap - text_height,
            at[1] + gap,
        )
        x_center, y_center = at[0] - text_width / 2, at[1] - text_height / 2
        for x, y in (
            *((x_right, y_center), (x_left, y_center), (x_center, y_above), (x_center, y_below)),
            *((x_right, y_above), (x_right, y_below), (x_left, y_above), (x_left, y_below)),
        ):
            box = (x, y, x + text_width, y + text_height)
            if _free(box, occupied, area) and all(distance(box, rival) >= distance(box, at) for rival in rivals):
                return box
    return None


def distance(box: Box, at: Place) -> float:
    """Return the distance from a box to a point, in pixels; 0 inside the box."""
    return math.hypot(max(box[0] - at[0], 0, at[0] - box[2]), max(box[1] - at[1], 0, at[1] - box[3]))

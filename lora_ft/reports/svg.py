"""Charts as SVG for a page: lines and points on linear or logarithmic axes, with intervals and labels.

Labels are placed so that they overlap neither each other nor markers. A label for which there is no place is left out,
or goes to the legend. Charts contain no scripts. Their colors are CSS variables of `STYLE`, which a page includes once,
so that charts follow the page's light or dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lora_ft.reports.axes import Scale, bounds, drawable, number, ticks
from lora_ft.reports.html import escape
from lora_ft.reports.labels import FONT, Box, Place, place, shortened, width

WIDTH, HEIGHT = 420, 225  # width of a chart with margins, height of its drawing area, in pixels
_TOP, _RIGHT, _BOTTOM, _ROW = 26, 14, 44, 19

# Colors near the set of Okabe and Ito, adjusted so that all pairs are far apart for color-blind readers, too. The
# contrast with the page is at least 3:1.
LIGHT = ("#084fbd", "#ff4a18", "#077944", "#b8578e", "#66a328", "#3683dd", "#525252")
DARK = ("#5376c3", "#da6d35", "#3df091", "#c2749b", "#edcc30", "#9ec8fe", "#e1e1e1")
# The numbers of colors, markers and dashes have no common divisor, so styles repeat late and differ in more than color.
_MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "M-3.7-3.7H3.7V3.7H-3.7Z",
    "M0-5L4.7 3.5H-4.7Z",
    "M0-5.2L5.2 0L0 5.2L-5.2 0Z",
    "M0 5L4.7-3.5H-4.7Z",
)
_DASHES = ("none", "7 3", "2 3", "9 3 2 3")


def _variables(colors: Iterable[str]) -> str:
    return "".join(f"--series-{number}:{color};" for number, color in enumerate(colors))


STYLE = f"""
:root {{ {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
@media print {{ :root {{ {_variables(LIGHT)} }} }}
svg.plot {{ display: block; width: 100%; height: auto; font-size: {FONT}px; }}
.plot text {{ fill: currentColor; }}
.plot .halo {{ paint-order: stroke; stroke: var(--page); stroke-width: 3px; stroke-linejoin: round; }}
.plot .grid {{ stroke: currentColor; stroke-opacity: .14; }}
.plot .rule {{ stroke: currentColor; stroke-opacity: .65; stroke-dasharray: 4 3; fill: none; }}
.plot .line {{ fill: none; stroke-width: 1.8; stroke-linejoin: round; }}
.plot .bar {{ fill: none; stroke-width: 1.2; stroke-opacity: .75; }}
.plot .ring {{ fill: none; stroke: currentColor; stroke-width: 1.6; }}
"""


@dataclass(frozen=True)
class Point:
    """A point of a series.

    Attributes:
        x, y: Coordinates, in the units of the axes.
        low, high: Interval of y, drawn as a bar.
        hint: Text that is shown while the pointer is on the point.
        label: Text next to the point, if there is room.
        ring: True to draw a ring around the point.
        bare: True to draw the line through the point without a marker.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    hint: str = ""
    label: str = ""
    ring: bool = False
    bare: bool = False


@dataclass(frozen=True)
class Series:
    """A named series of points.

    Attributes:
        name: Name in the legend; "" for none.
        points: Points, in the order of the line.
        style: Number of the color, marker and dash; None for a plain line in the color of text.
        line: True to connect the points.
    """

    name: str
    points: Sequence[Point]
    style: int | None = None
    line: bool = True


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: Quantity and unit.
        log: True for a logarithmic axis.
        include: Values that the axis must reach.
        ticks: Ticks to show instead of computed ones.
    """

    label: str
    log: bool = False
    include: tuple[float, ...] = ()
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A reference line, y = `at` or, if `diagonal`, y = `at` * x. The latter requires two axes of the same kind."""

    label: str
    at: float
    diagonal: bool = False


@dataclass(frozen=True)
class Plot:
    """A chart. `note` explains how to read it."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    rules: Sequence[Rule] = ()
    note: str = ""


def _along(points: Sequence[Place]) -> Iterator[Place]:
    """Yield positions along a line, about 5 pixels apart."""
    for (x, y), (to_x, to_y) in pairwise(points):
        steps = max(1, round(math.hypot(to_x - x, to_y - y) / 5))
        yield from ((x + (to_x - x) * i / steps, y + (to_y - y) * i / steps) for i in range(steps + 1))


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    extra = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _hint(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _path(points: Iterable[Place], kind: str, attributes: str = "", hint: str = "") -> str:
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{kind}" d="{d}"{attributes}>{_hint(hint)}</path>'


def _stroke(style: int | None, dashed: bool = True) -> str:
    if style is None:
        return ' stroke="currentColor" stroke-opacity=".55"'
    color, dash = style % len(LIGHT), _DASHES[style % len(_DASHES)] if dashed else "none"
    return f' style="stroke:var(--series-{color});stroke-dasharray:{dash}"'


def _marker(x: float, y: float, style: int, hint: str = "") -> str:
    color, shape = style % len(LIGHT), _MARKERS[style % len(_MARKERS)]
    at = f'transform="translate({x:.1f} {y:.1f})"'
    return f'<path d="{shape}" {at} style="fill:var(--series-{color})">{_hint(hint)}</path>'


class _Drawing:
    """State of a chart while it is drawn: its scales, its SVG elements, and the boxes that labels must avoid."""

    def __init__(self, plot: Plot) -> None:
        self.plot = plot
        self.series = [(series, [p for p in series.points if self._shown(p)]) for series in plot.series]
        points = [point for _, visible in self.series for point in visible]
        levels = [rule.at for rule in plot.rules if not rule.diagonal]
        ends = [end for p in points for end in (p.y, p.low, p.high) if end is not None]
        spans = (
            bounds([*(p.x for p in points), *plot.x.include], plot.x.log),
            bounds([*ends, *levels, *plot.y.include], plot.y.log),
        )
        self.ticks = [
            [tick for tick in axis.ticks if span[0] <= tick <= span[1]] or ticks(*span, axis.log)
            for axis, span in zip((plot.x, plot.y), spans, strict=True)
        ]
        x_left = 12 + max(width(number(tick)) for tick in self.ticks[1])
        self.x = Scale(*spans[0], x_left, WIDTH - _RIGHT, plot.x.log)
        self.y = Scale(*spans[1], _TOP + HEIGHT, _TOP, plot.y.log)
        self.area: Box = (x_left, _TOP, WIDTH - _RIGHT, _TOP + HEIGHT)
        self.parts: list[str] = []
        self.occupied: list[Box] = []  # boxes of markers and labels
        self.crossed: list[Box] = []  # boxes along lines; a label may cover them if there is no other room

    def _shown(self, point: Point) -> bool:
        return drawable(point.x, self.plot.x.log) and drawable(point.y, self.plot.y.log)

    def axes(self) -> None:
        """Draw the grid, ticks and labels of both axes. A tick whose text would touch the previous one has no text."""
        x_left, y_top, x_right, y_bottom = self.area
        for tick in self.ticks[1]:
            y = self.y(tick)
            self.parts.append(_path([(x_left, y), (x_right, y)], "grid"))
            self.parts.append(_text(x_left - 6, y + 4, number(tick), anchor="end"))
        end = 0.0
        for tick in self.ticks[0]:
            x, half = self.x(tick), width(number(tick)) / 2
            self.parts.append(_path([(x, y_top), (x, y_bottom)], "grid"))
            middle = min(x, WIDTH - half)
            if middle - half > end:
                self.parts.append(_text(middle, y_bottom + 19, number(tick), anchor="middle"))
                end = middle + half + 3
        self.parts.append(_text(2, 14, shortened(self.plot.y.label, WIDTH)))
        self.parts.append(_text(x_right, y_bottom + 37, shortened(self.plot.x.label, x_right), anchor="end"))

    def lines(self) -> None:
        """Draw the rules, then the lines of series."""
        for rule in self.plot.rules:
            if ends := self._ends(rule):
                self.parts.append(_path(ends, "rule", hint=rule.label))
                self._cross(ends)
        for series, points in self.series:
            if series.line and len(points) > 1:
                path = [(self.x(p.x), self.y(p.y)) for p in points]
                self.parts.append(_path(path, "line", _stroke(series.style), series.name))
                self._cross(path)

    def _cross(self, line: Sequence[Place]) -> None:
        self.crossed += [(x - 1, y - 1, x + 1, y + 1) for x, y in _along(line)]

    def _ends(self, rule: Rule) -> list[Place]:
        """Return the ends of a rule within the drawing area, or nothing if it lies outside."""
        low, high = self.x.low, self.x.high
        if not rule.diagonal:
            return [(self.x(x), self.y(rule.at)) for x in (low, high)] if drawable(rule.at, self.plot.y.log) else []
        low, high = max(low, self.y.low / rule.at), min(high, self.y.high / rule.at)
        return [(self.x(x), self.y(rule.at * x)) for x in (low, high)] if low < high else []

    def points(self) -> None:
        """Draw the intervals and markers of series."""
        for series, points in self.series:
            for point in points:
                x, y = self.x(point.x), self.y(point.y)
                if point.low is not None and point.high is not None:
                    low, high = (self.y(v) if drawable(v, self.y.log) else y for v in (point.low, point.high))
                    bar = [(x - 3, low), (x + 3, low), (x, low), (x, high), (x - 3, high), (x + 3, high)]
                    self.parts.append(_path(bar, "bar", _stroke(series.style, dashed=False)))
                    self.crossed.append((x - 3, high, x + 3, low))
                if point.bare or series.style is None:
                    continue
                if point.ring:
                    self.parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="8"/>')
                self.parts.append(_marker(x, y, series.style, point.hint))
                self.occupied.append((x - 6, y - 6, x + 6, y + 6))

    def labels(self) -> bool:
        """Draw the labels of rules and points. Return whether all names are at their points and need no legend."""
        for rule in self.plot.rules:
            places = reversed(list(_along(self._ends(rule))))
            boxes = (place(rule.label, at, self.occupied + self.crossed, self.area, gaps=(4,)) for at in places)
            if box := next((box for box in boxes if box), None):
                self._label(rule.label, box)
        names: list[tuple[str, Box | None]] = []
        centers = [
            (self.x(point.x), self.y(point.y)) for _, points in self.series for point in points if not point.bare
        ]
        for series, points in self.series:
            for point in points:
                if not point.label:
                    continue
                box = self._beside(point, centers)
                if point.label == series.name:
                    names.append((point.label, box))
                    self.occupied += [box] if box else []
                elif box:
                    self._label(point.label, box)
        # All names are at their points or all are in the legend, so that a chart is read in one way.
        all_named = bool(names) and all(box for _, box in names)
        for name, box in names:
            if all_named and box:
                self._label(name, box)
        return all_named

    def _beside(self, point: Point, rivals: Sequence[Place]) -> Box | None:
        at = self.x(point.x), self.y(point.y)
        obstacle_sets = (self.occupied + self.crossed, self.occupied)
        return next(
            (box for obstacles in obstacle_sets if (box := place(point.label, at, obstacles, self.area, rivals))), None
        )

    def _label(self, text: str, box: Box) -> None:
        self.parts.append(_text((box[0] + box[2]) / 2, box[3] - 3, text, "halo", "middle"))
        self.occupied.append(box)

    def legend(self, names_at_points: bool) -> float:
        """Draw the legend in rows below the axis, and return the height of the whole chart, in pixels.

        Args:
            names_at_points: True to leave out series whose names are at their points.
        """
        x, y = 2.0, self.area[3] + _BOTTOM + 12.0
        entries = [
            s for s, points in self.series if points and s.name and not (names_at_points and points[0].label == s.name)
        ]
        for series in entries:
            name = shortened(series.name, WIDTH - 36)
            if x > 2 and x + 32 + width(name) > WIDTH:
                x, y = 2.0, y + _ROW
            if series.line:
                self.parts.append(_path([(x, y - 4), (x + 24, y - 4)], "line", _stroke(series.style)))
            if series.style is not None and any(not point.bare for point in series.points):
                self.parts.append(_marker(x + 12, y - 4, series.style))
            self.parts.append(f"<g>{_hint(series.name)}{_text(x + 30, y, name)}</g>")
            x += 44 + width(name)
        return y + 8 if entries else self.area[3] + _BOTTOM


def svg(plot: Plot) -> str:
    """Return the chart as an `svg` element. Points without a position (infinite, 0 on a log axis) are left out."""
    drawing = _Drawing(plot)
    drawing.axes()
    drawing.lines()
    drawing.points()
    height = drawing.legend(drawing.labels())
    head = f'<svg class="plot" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(plot.title)}">'
    return "\n".join([head, *drawing.parts, "</svg>"])


def figures(plots: Sequence[Plot]) -> list[str]:
    """Return charts with their titles and notes as one block of a page, or nothing if there are none."""
    parts = []
    for plot in plots:
        note = f'<p class="note">{escape(plot.note)}</p>' if plot.note else ""
        parts.append(f"<figure><figcaption>{escape(plot.title)}</figcaption>\n{svg(plot)}\n{note}</figure>")
    return ['<div class="charts">', *parts, "</div>"] if parts else []

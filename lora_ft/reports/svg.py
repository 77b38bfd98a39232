"""Charts as SVG, for a page: lines and points on linear or logarithmic axes, intervals, labels that keep apart.

There is no script in them. Their colours are variables of `STYLE`, which a page holds once, so that charts follow the
page into the dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lora_ft.reports.axes import Scale, bounds, drawable, number, ticks
from lora_ft.reports.html import escape

WIDTH, HEIGHT = 420, 225  # of a chart with its margins; of the area that data is drawn in
_TOP, _RIGHT, _BOTTOM, _FONT, _ROW = 26, 14, 44, 12, 19
_GAPS = (8, 14)  # from a point to its label

# Near Okabe and Ito's set, moved until all pairs are far apart for colour-blind readers, too, at a contrast with the
# page of 3 to 1 at least.
LIGHT = ("#084fbd", "#ff4a18", "#077944", "#b8578e", "#66a328", "#3683dd", "#525252")
DARK = ("#5376c3", "#da6d35", "#3df091", "#c2749b", "#edcc30", "#9ec8fe", "#e1e1e1")
# Numbers of colours, markers and dashes have no common divisor: styles repeat late, and never differ in colour alone.
_MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "M-3.7-3.7H3.7V3.7H-3.7Z",
    "M0-5L4.7 3.5H-4.7Z",
    "M0-5.2L5.2 0L0 5.2L-5.2 0Z",
    "M0 5L4.7-3.5H-4.7Z",
)
_DASHES = ("none", "7 3", "2 3", "9 3 2 3")


def _variables(colours: Iterable[str]) -> str:
    return "".join(f"--series-{number}:{colour};" for number, colour in enumerate(colours))


STYLE = f"""
:root {{ {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
@media print {{ :root {{ {_variables(LIGHT)} }} }}
svg.plot {{ display: block; width: 100%; height: auto; font-size: {_FONT}px; }}
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
    """A place on a chart.

    Attributes:
        x, y: where.
        low, high: interval of y, drawn as a bar.
        hint: what is shown while the pointer is on it.
        label: written beside it, where there is room.
        ring: whether it is marked among those of its series.
        bare: whether the line goes through it without a marker.
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
    """Points of one name. `style` numbers its colour, marker and dash; None is a plain line in the text's colour."""

    name: str
    points: Sequence[Point]
    style: int | None = None
    line: bool = True


@dataclass(frozen=True)
class Axis:
    """One axis. `include` are values that it must reach, `ticks` take the place of those that are found."""

    label: str
    log: bool = False
    include: tuple[float, ...] = ()
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A line to compare with: y = `at`, or y = `at` times x, which is straight where both axes are of one kind."""

    label: str
    at: float
    diagonal: bool = False


@dataclass(frozen=True)
class Plot:
    """A chart; `note` says how to read it."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    rules: Sequence[Rule] = ()
    note: str = ""


def width(text: str) -> float:
    """About how wide a text is, rather too much: which font there will be is not known."""
    return _FONT * sum(
        0.38 if c in "iIjlftr.,:;|!'()[]/ -" else 1.0 if c in "mwMW@%" or c > "⺀" else 0.66 for c in text
    )


def shortened(text: str, room: float) -> str:
    """A text that fits, with an ellipsis for its middle where it does not."""
    keep = len(text)
    short = text
    while width(short) > room and keep > 2:
        keep -= 1
        short = f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"
    return short


Box = tuple[float, float, float, float]
Place = tuple[float, float]


def _free(box: Box, taken: Iterable[Box], area: Box) -> bool:
    inside = area[0] <= box[0] and area[1] <= box[1] and box[2] <= area[2] and box[3] <= area[3]
    return inside and not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
    )


def place(
    text: str, at: Place, taken: Sequence[Box], area: Box, rivals: Sequence[Place] = (), gaps: Sequence[float] = _GAPS
) -> Box | None:
    """The box beside a place in which a text overlaps nothing and is nearer to none of the rivals; None without one."""
    wide, high = width(text), _FONT + 2
    for gap in gaps:
        right, left, above, below = at[0] + gap, at[0] - gap - wide, at[1] - gap - high, at[1] + gap
        middle, level = at[0] - wide / 2, at[1] - high / 2
        for x, y in (
            *((right, level), (left, level), (middle, above), (middle, below)),
            *((right, above), (right, below), (left, above), (left, below)),
        ):
            box = (x, y, x + wide, y + high)
            if _free(box, taken, area) and all(_distance(box, rival) >= _distance(box, at) for rival in rivals):
                return box
    return None


def _distance(box: Box, at: Place) -> float:
    return math.hypot(max(box[0] - at[0], 0, at[0] - box[2]), max(box[1] - at[1], 0, at[1] - box[3]))


def _along(points: Sequence[Place]) -> Iterator[Place]:
    """Places on a line, some pixels from each other."""
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
    colour, dash = style % len(LIGHT), _DASHES[style % len(_DASHES)] if dashed else "none"
    return f' style="stroke:var(--series-{colour});stroke-dasharray:{dash}"'


def _marker(x: float, y: float, style: int, hint: str = "") -> str:
    colour, shape = style % len(LIGHT), _MARKERS[style % len(_MARKERS)]
    at = f'transform="translate({x:.1f} {y:.1f})"'
    return f'<path d="{shape}" {at} style="fill:var(--series-{colour})">{_hint(hint)}</path>'


class _Drawing:
    """One chart while it is drawn: scales, what is drawn, and where no label may go any more."""

    def __init__(self, plot: Plot) -> None:
        self.plot = plot
        self.series = [(series, [p for p in series.points if self._shown(p)]) for series in plot.series]
        points = [point for _, kept in self.series for point in kept]
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
        left = 12 + max(width(number(tick)) for tick in self.ticks[1])
        self.x = Scale(*spans[0], left, WIDTH - _RIGHT, plot.x.log)
        self.y = Scale(*spans[1], _TOP + HEIGHT, _TOP, plot.y.log)
        self.area: Box = (left, _TOP, WIDTH - _RIGHT, _TOP + HEIGHT)
        self.parts: list[str] = []
        self.taken: list[Box] = []  # by markers and labels
        self.crossed: list[Box] = []  # by lines, which a label may hide a piece of where it finds no other place

    def _shown(self, point: Point) -> bool:
        return drawable(point.x, self.plot.x.log) and drawable(point.y, self.plot.y.log)

    def axes(self) -> None:
        """Grid, ticks and the labels of both axes. A tick whose text would touch the one before has none."""
        left, top, right, bottom = self.area
        for tick in self.ticks[1]:
            y = self.y(tick)
            self.parts.append(_path([(left, y), (right, y)], "grid"))
            self.parts.append(_text(left - 6, y + 4, number(tick), anchor="end"))
        end = 0.0
        for tick in self.ticks[0]:
            x, half = self.x(tick), width(number(tick)) / 2
            self.parts.append(_path([(x, top), (x, bottom)], "grid"))
            middle = min(x, WIDTH - half)
            if middle - half > end:
                self.parts.append(_text(middle, bottom + 19, number(tick), anchor="middle"))
                end = middle + half + 3
        self.parts.append(_text(2, 14, shortened(self.plot.y.label, WIDTH)))
        self.parts.append(_text(right, bottom + 37, shortened(self.plot.x.label, right), anchor="end"))

    def lines(self) -> None:
        """Rules, then lines of series."""
        for rule in self.plot.rules:
            if ends := self._ends(rule):
                self.parts.append(_path(ends, "rule", hint=rule.label))
                self._cross(ends)
        for series, points in self.series:
            if series.line and len(points) > 1:
                drawn = [(self.x(p.x), self.y(p.y)) for p in points]
                self.parts.append(_path(drawn, "line", _stroke(series.style), series.name))
                self._cross(drawn)

    def _cross(self, line: Sequence[Place]) -> None:
        self.crossed += [(x - 1, y - 1, x + 1, y + 1) for x, y in _along(line)]

    def _ends(self, rule: Rule) -> list[Place]:
        """Of a rule, within the area; nothing where it lies outside."""
        low, high = self.x.low, self.x.high
        if not rule.diagonal:
            return [(self.x(x), self.y(rule.at)) for x in (low, high)] if drawable(rule.at, self.plot.y.log) else []
        low, high = max(low, self.y.low / rule.at), min(high, self.y.high / rule.at)
        return [(self.x(x), self.y(rule.at * x)) for x in (low, high)] if low < high else []

    def points(self) -> None:
        """Intervals and markers of series."""
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
                self.taken.append((x - 6, y - 6, x + 6, y + 6))

    def labels(self) -> bool:
        """Those of rules and points. Gives whether all names stand at their points, so that no legend has to tell."""
        for rule in self.plot.rules:
            places = reversed(list(_along(self._ends(rule))))
            found = (place(rule.label, at, self.taken + self.crossed, self.area, gaps=(4,)) for at in places)
            if box := next((box for box in found if box), None):
                self._label(rule.label, box)
        names: list[tuple[str, Box | None]] = []
        centres = [
            (self.x(point.x), self.y(point.y)) for _, points in self.series for point in points if not point.bare
        ]
        for series, points in self.series:
            for point in points:
                if not point.label:
                    continue
                box = self._beside(point, centres)
                if point.label == series.name:
                    names.append((point.label, box))
                    self.taken += [box] if box else []
                elif box:
                    self._label(point.label, box)
        # some names beside points and others in the legend would be two ways to read one chart
        told = bool(names) and all(box for _, box in names)
        for name, box in names:
            if told and box:
                self._label(name, box)
        return told

    def _beside(self, point: Point, rivals: Sequence[Place]) -> Box | None:
        at = self.x(point.x), self.y(point.y)
        tries = (self.taken + self.crossed, self.taken)
        return next((box for taken in tries if (box := place(point.label, at, taken, self.area, rivals))), None)

    def _label(self, text: str, box: Box) -> None:
        self.parts.append(_text((box[0] + box[2]) / 2, box[3] - 3, text, "halo", "middle"))
        self.taken.append(box)

    def legend(self, told: bool) -> float:
        """Names of the other series, in rows below the axis. Gives the height of the whole chart."""
        x, y = 2.0, self.area[3] + _BOTTOM + 12.0
        entries = [s for s, points in self.series if points and not (told and points[0].label == s.name)]
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
    """The chart as an `svg` element. Points that have no place on it (infinite, 0 on a log axis) are left out."""
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

"""Charts: coordinates are finite, labels do not overlap, text is escaped."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.reports.axes import drawable
from lora_ft.reports.labels import place, shortened, width
from lora_ft.reports.svg import DARK, LIGHT, WIDTH, Axis, Plot, Point, Rule, Series, svg

AREA = (0.0, 0.0, 400.0, 200.0)
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")), max_size=60)


def _plot(points: list[Point], *, log: bool = False, name: str = "one", **more: object) -> Plot:
    return Plot("chart", Axis("x", log=log), Axis("y", log=log), [Series(name, points, 0)], **more)  # type: ignore[arg-type]


def _root(plot: Plot) -> ET.Element:
    return ET.fromstring(svg(plot))


def _texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter("text")]


@given(
    st.lists(st.tuples(st.floats(), st.floats(), st.floats()), max_size=12),
    st.booleans(),
    texts,
    st.lists(st.floats(1e-6, 1e6), max_size=2),
)
def test_every_chart_is_well_formed_and_finite(
    points: list[tuple[float, float, float]], log: bool, name: str, at: list[float]
) -> None:
    drawn_points = [Point(x, y, y - abs(e), y + abs(e), hint=name, label=name, ring=True) for x, y, e in points]
    rules = [Rule(name, value, diagonal=diagonal) for value in at for diagonal in (False, True)]
    text = svg(_plot(drawn_points, log=log, name=name, rules=rules))
    root = ET.fromstring(text)
    drawn = " ".join(value for element in root.iter() for key, value in element.items() if key in ("d", "x", "y", "cx"))
    assert not re.search("nan|inf", drawn, re.IGNORECASE)
    shown = [p for p in points if all(drawable(v, log) for v in p[:2])]
    assert len(root.findall("circle")) == len(shown)


def test_text_is_escaped() -> None:
    name = '<script>alert("&")</script>'
    text = svg(_plot([Point(1, 1, hint=name, label=name), Point(2, 2)], name=name, rules=[Rule(name, 1.5)]))
    assert "<script" not in text and '"&"' not in text
    assert name in _texts(ET.fromstring(text))


@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 200)), max_size=15))
def test_labels_do_not_overlap(points: list[tuple[float, float]]) -> None:
    occupied: list[tuple[float, float, float, float]] = []
    for x, y in points:
        box = place("a label", (x, y), occupied, AREA)
        if box:
            assert all(a >= b for a, b in zip(box[:2], AREA[:2], strict=True))
            assert all(a <= b for a, b in zip(box[2:], AREA[2:], strict=True))
            assert not any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in occupied)
            occupied.append(box)


@pytest.mark.parametrize("count", [4, 20])
def test_names_are_all_at_points_or_all_in_the_legend(count: int) -> None:
    names = [f"engine {at}" for at in range(count)]
    series = [Series(name, [Point(at, at % 3, label=name)], at, line=False) for at, name in enumerate(names)]
    root = _root(Plot("", Axis("x"), Axis("y"), series))
    labels = [e.text for e in root.iter("text") if e.get("class") == "halo"]
    assert sorted(text for text in _texts(root) if text.startswith("engine")) == sorted(names)
    assert sorted(text for text in labels if text) == (sorted(names) if count == 4 else [])


def test_label_is_nearest_to_its_own_point() -> None:
    rivals = [(200.0, 100.0), (230.0, 100.0), (170.0, 100.0)]
    box = place("label", rivals[0], [], AREA, rivals)
    assert box is not None and (box[3] <= 100 or box[1] >= 100) and abs((box[0] + box[2]) / 2 - 200) < 1e-6


def test_legend_is_below_the_axis_and_within_the_width() -> None:
    series = [Series(f"a rather long name of an engine {at}" * (1 + at), [Point(1, at)], at) for at in range(4)]
    root = _root(Plot("", Axis("x"), Axis("the label below"), series))
    lowest = max(float(e.get("y", 0)) for e in root.iter("text") if "engine" not in (e.text or ""))
    for group in root.findall("g"):
        text = group.find("text")
        assert text is not None and text.text
        assert float(text.get("y", 0)) > lowest
        assert float(text.get("x", 0)) + width(text.text) <= WIDTH
    assert float(root.get("viewBox", "").split()[3]) > max(float(e.get("y", 0)) for e in root.iter("text"))


def test_styles_differ_in_more_than_color() -> None:
    series = [Series(str(at), [Point(at, at), Point(at, at + 1)], at) for at in range(len(LIGHT) * 4)]
    root = _root(Plot("", Axis("x"), Axis("y"), series))
    lines = [e for e in root.iter("path") if e.get("class") == "line"]
    assert len({e.get("style") for e in lines}) == len(series)


def test_rule_outside_the_area_is_not_drawn() -> None:
    plot = _plot([Point(1, 100), Point(2, 110)], rules=[Rule("low", 0.1, diagonal=True), Rule("level", 90)])
    labels = _texts(_root(plot))
    assert "level" in labels and "low" not in labels


def test_touching_ticks_have_no_text() -> None:
    axis = Axis("batch", log=True, ticks=tuple(float(n) for n in range(100, 200)))
    plot = Plot("", axis, Axis("y"), [Series("s", [Point(100, 1), Point(199, 1)], 0)])
    assert 3 < sum(text in {str(n) for n in range(100, 200)} for text in _texts(_root(plot))) < 20


def test_long_text_is_shortened_in_the_middle() -> None:
    assert shortened("short", 400) == "short"
    assert shortened("a long name that ends in int8", 100).endswith("int8")
    assert width(shortened("a long name that ends in int8", 100)) <= 100


# Severe protanopia, deuteranopia and tritanopia on linear RGB, after Machado, Oliveira and Fernandes (2009).
SIGHTS = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _linear(color: str) -> np.ndarray:
    parts = np.array([int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(linear, 0, 1) / TO_XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(("colors", "page"), [(LIGHT, "#ffffff"), (DARK, "#15171b")])
def test_colors_are_visible_and_distinct(colors: tuple[str, ...], page: str) -> None:
    for color in colors:
        dark, light = sorted(float(TO_XYZ[1] @ _linear(c)) for c in (color, page))
        assert (light + 0.05) / (dark + 0.05) >= 3
    for sight in SIGHTS:
        perceived = [_lab(sight @ _linear(color)) for color in colors]
        assert min(np.linalg.norm(a - b) for a, b in combinations(perceived, 2)) > 15

"""Draw the pictures of the README and the documentation from committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lora_ft.bench.report import BenchReport
from lora_ft.reports.svg import LIGHT, STYLE, Axis, Plot, Point, Series, svg

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
_PROJECTS = {
    "torch": "PyTorch",
    "onnx": "lora-ft bundle",
    "optimum": "Optimum",
    "openvino": "OpenVINO",
    "ctranslate2": "CTranslate2",
    "openvino-requests": "OpenVINO, own loop",
}
_STEPS = (
    ("rows", "data/"),
    ("prompt, codec", "core/"),
    ("batches", "data/"),
    ("adapter", "training/"),
    ("checkpoint", "models/"),
    ("bundle", "export/"),
    ("answers", "runtime/"),
    ("scores", "evaluation/"),
)


def quality_and_speed() -> str:
    """Return a chart of the scores and the speeds of engines at batch 1, measured by `bench --suite peers`."""
    report = BenchReport.model_validate(json.loads((RESULTS / "peers.json").read_text(encoding="utf-8")))
    series = []
    for style, (kind, name) in enumerate(_PROJECTS.items()):
        points = [
            Point(timing.ratio.value, report.quality[key].score.value, label=key.split("/")[1])
            for key, timing in report.cases[0].timings.items()
            if key.split("/")[0] == kind and key in report.quality
        ]
        if points:
            series.append(Series(name, points, style, line=False))
    title = "ROUGE-1 and speed on DialogSum"
    plot = Plot(
        title,
        Axis("speed-up over PyTorch fp32, batch 1", include=(0.0, 40.0)),
        Axis("ROUGE-1", include=(30.0, 42.0)),
        series,
    )
    chart = svg(plot)
    view = re.search(r'viewBox="([\d. -]+)"', chart)
    assert view is not None
    x, y, width, height = (float(number) for number in view.group(1).split())
    colors = dict(enumerate(LIGHT))
    style = re.sub(r"@media[^{]*\{(?:[^{}]|\{[^{}]*\})*\}", "", STYLE)
    for number, color in colors.items():
        style = style.replace(f"var(--series-{number})", color)
        chart = chart.replace(f"var(--series-{number})", color)
    head, _, body = chart[chart.index("<svg") :].partition(">")
    head += f' width="{1.3 * width:g}"'
    if "xmlns" not in head:
        head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    page = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="#fff"/>'
    base = f"svg {{ color: #1a1a1a; font-family: system-ui, sans-serif; --page: #fff; }}{style}"
    return f"{head}><style>{base}</style>{page}{body[: body.rindex('</svg>')]}</svg>\n"


def row_pipeline() -> str:
    """Return a picture of the steps from a row in a file to its score."""
    box, gap, height = 126, 24, 64
    columns = 4
    width = columns * (box + gap) + gap
    rows = -(-len(_STEPS) // columns)
    full_height = rows * (height + 34) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {full_height}" '
        f'width="{width}" height="{full_height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="From rows to scores">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8Z" fill="#445"/></marker></defs>',
        f'<rect width="{width}" height="{full_height}" fill="#fff"/>',
    ]
    for number, (name, package) in enumerate(_STEPS):
        row, column = divmod(number, columns)
        x, y = gap + column * (box + gap), 20 + row * (height + 34)
        parts.append(f'<rect x="{x}" y="{y}" width="{box}" height="{height}" rx="6" fill="#eef3ff" stroke="#5a78b8"/>')
        middle = x + box / 2
        parts.append(
            f'<text x="{middle:g}" y="{y + 28}" text-anchor="middle" fill="#111" font-weight="600">{name}</text>'
        )
        parts.append(
            f'<text x="{middle:g}" y="{y + 47}" text-anchor="middle" fill="#445" font-size="12">{package}</text>'
        )
        if number + 1 == len(_STEPS):
            break
        if column + 1 < columns:
            path = f"M{x + box} {y + height / 2:g}H{x + box + gap - 2}"
        else:
            path = f"M{middle:g} {y + height}v17H{gap + box / 2:g}v15"
        parts.append(f'<path d="{path}" fill="none" stroke="#445" stroke-width="1.5" marker-end="url(#tip)"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"

"""The README's table of results, written from the committed measurement.

python -m benchmarks.readme          # rewrite the table in README.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.files import write_text

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "dialogsum.json"
BEGIN, END = "<!-- results: python -m benchmarks.readme -->", "<!-- end of results -->"


def render(found: dict[str, Any]) -> str:
    """The table in Markdown."""
    scores, before = found["evaluation"]["scores"]["rouge"], found["evaluation"]["baseline"]["rouge"]
    difference, parity = found["evaluation"]["difference"]["rouge1"], found["parity"]
    training, size = found["training"], found["megabytes"]
    speed = training["speed"]
    show = lambda e: f"{e['mean']:.1f} [{e['low']:.1f}, {e['high']:.1f}]"  # noqa: E731
    kinds = ("rouge1", "rouge2", "rougeL")
    rows = [
        ("ROUGE-1 / 2 / L before", " / ".join(f"{before[kind]['mean']:.1f}" for kind in kinds)),
        ("ROUGE-1 / 2 / L after", " / ".join(f"{scores[kind]['mean']:.1f}" for kind in kinds)),
        ("ROUGE-1 with its 95 % interval; gain, paired", f"{show(scores['rouge1'])}; {show(difference)}"),
        ("adapter / merged / ONNX", f"{size['adapter']:.1f} / {size['checkpoint']:.0f} / {size['bundle']:.0f} MB"),
        (
            "training",
            f"{training['rows']['train']:,} rows, {training['steps']} steps, {speed['seconds_in_steps'] / 60:.0f} min, "
            f"{speed['samples_per_second']} samples/s, {training['precision']}",
        ),
        ("ONNX text equal to PyTorch's", f"{parity['identical_rows']} of {parity['rows']} rows"),
        *(
            (
                f"128 tokens in, 64 out, batch {row['batch']}: PyTorch / ONNX",
                f"{1000 * row['median']['torch']:.0f} / {1000 * row['median']['onnx']:.0f} ms: "
                f"{row['ratio']['onnx']:.1f} times as fast",
            )
            for row in found["latency"]
        ),
    ]
    machine = found["environment"]
    about = (
        f"Base `offline`, {found['evaluation']['rows']} test rows; two cores of an {machine['cpu']} "
        f"({machine['cpu flags']}), fp32 generation."
    )
    lines = [
        "| FLAN-T5-small on DialogSum | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        about,
    ]
    return "\n".join(lines)


def updated(readme: str, table: str) -> str:
    """The README's text with the table in its place."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    table = render(json.loads(RESULTS.read_text(encoding="utf-8")))
    write_text(readme, updated(readme.read_text(encoding="utf-8"), table))

"""The README's tables of results, written from the committed measurements.

python -m benchmarks.readme          # rewrite the tables in README.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.files import write_text

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
END = "<!-- end of results -->"


def dialogsum(found: dict[str, Any]) -> str:
    """What training, ROUGE and the fp32 bundle came to."""
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


def precisions(found: dict[str, Any]) -> str:
    """What each precision costs and gives, and how fast the engines are that one could take instead."""
    alone, together = ({name: f"{1000 * seconds:,.0f}" for name, seconds in entry["median"].items()}
                       for entry in found["latency"])  # fmt: skip
    lines = [
        "| precision | MB | ROUGE-1 | against fp32, paired | batch 1, ms | batch 8, ms | a step, times its floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, quality in found["quality"].items():
        difference = quality["difference"]
        change = f"{difference['mean']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]"
        lines.append(
            f"| {name} | {found['megabytes'][name]:.0f} | {quality['rouge1']['mean']:.1f} | "
            f"{'' if name == 'fp32' else change} | {alone[name]} | {together[name]} | "
            f"{found['floor'][name]['times_the_floor']:.1f} |"
        )
    others = [name for name in alone if name not in found["quality"]]
    lines += [f"| *{name}* | | | | {alone[name]} | {together[name]} | |" for name in others]
    machine, size = found["environment"], found["latency"][0]
    return "\n".join([
        *lines,
        "",
        f"{size['source']} tokens in, {size['new']} out, greedy, an engine a process, in turns; two cores of an "
        f"{machine['cpu']} ({machine['cpu flags']}).",
    ])  # fmt: skip


TABLES = {"dialogsum": dialogsum, "precisions": precisions}


def updated(readme: str) -> str:
    """The README's text with every table in its place."""
    for name, render in TABLES.items():
        begin = f"<!-- results: {name} (python -m benchmarks.readme) -->"
        head, _, rest = readme.partition(begin)
        _, _, tail = rest.partition(END)
        found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        readme = f"{head}{begin}\n{render(found)}\n{END}{tail}"
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    write_text(path, updated(path.read_text(encoding="utf-8")))

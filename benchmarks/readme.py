"""Write the tables of results in the README and the documentation from the committed measurements.

python -m benchmarks.readme          # rewrite the tables of all pages
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.command import run_command
from benchmarks.studies.bank import tables as bank_tables
from lora_ft.bench.report import BenchReport
from lora_ft.bench.training_report import TrainingReport
from lora_ft.core.files import write_text
from lora_ft.core.hardware import cores
from lora_ft.reports.markdown import interval, table
from lora_ft.tasks.files import load_task
from lora_ft.training.memory_estimates import GIB, HEAP, task_batch
from lora_ft.training.memory_estimates import model_sizes as computed_sizes

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
END = "<!-- end of results -->"


def dialogsum(found: dict[str, Any]) -> str:
    """Return the table of training speed, ROUGE and the fp32 bundle on DialogSum."""
    scores, before = found["evaluation"]["scores"]["scores"], found["evaluation"]["baseline"]["scores"]
    difference, parity = found["evaluation"]["difference"]["rouge1"], found["parity"]
    training, size = found["training"], found["megabytes"]
    speed = training["speed"]
    kinds = ("rouge1", "rouge2", "rougeL")
    rows = [
        ("ROUGE-1 / 2 / L before", " / ".join(f"{before[kind]['mean']:.1f}" for kind in kinds)),
        ("ROUGE-1 / 2 / L after", " / ".join(f"{scores[kind]['mean']:.1f}" for kind in kinds)),
        ("ROUGE-1 with its 95 % interval; gain, paired", f"{interval(scores['rouge1'])}; {interval(difference)}"),
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
    tested, machine = found["evaluation"]["rows"], _machine(found["environment"])
    about = f"Base `offline`, {tested} test rows; {machine}, fp32 generation."
    return f"{table(['FLAN-T5-small on DialogSum', ''], rows)}\n\n{about}"


def engines(found: dict[str, Any]) -> str:
    """Return the table of engines by batch size from `lora-ft bench`: score, speed, and on CPUs share of the floor."""
    report = BenchReport.model_validate(found)
    timings = [case.timings for case in report.cases]
    floors = any(one.floor for one in timings[0].values())
    columns = [
        "engine",
        "MB",
        "ROUGE-1",
        "against fp32, paired",
        *(f"batch {case.batch}, ms" for case in report.cases),
        "times as fast",
        *["of the floor"] * floors,
    ]
    lines = []
    for one in report.contestants:
        if any(one.name not in timing for timing in timings):
            continue
        quality, own = report.quality.get(one.name), [timing[one.name] for timing in timings]
        change = quality.difference if quality else None
        lines.append(
            (
                one.name,
                f"{one.megabytes:.0f}",
                f"{quality.score.value:.1f}" if quality else "",
                f"{change.value:+.1f} [{change.low:+.1f}, {change.high:+.1f}]" if change else "",
                *(f"{1000 * statistics.median(timing.total):,.0f}" for timing in own),
                " / ".join(f"{timing.ratio.value:.1f}" for timing in own),
                *[f"{own[0].floor:.0%}" if own[0].floor else ""] * floors,
            )
        )
    case, rows = report.cases[0], max((quality.rows for quality in report.quality.values()), default=0)
    return "\n".join(
        [
            table(columns, lines),
            "",
            f"{case.source} tokens in, {case.new} out, greedy; {rows} test rows; medians of {report.suite.rounds} "
            f"rounds ({report.verdict}); {_machine(report.environment, report.contestants[0].provider)}; the harness "
            f"took {report.harness.share:.1%}.",
        ]
    )


def training(found: dict[str, Any]) -> str:
    """Return the table of `lora-ft bench train`."""
    report = TrainingReport.model_validate(found)
    lines = []
    for name, recipe in report.recipes.items():
        ratio = recipe.ratio
        how = ", ".join([recipe.precision, *(["compiled"] if recipe.compiled else [])])
        lines.append(
            (
                f"{name} ({how})",
                f"{recipe.samples_per_second:.2f}",
                f"{recipe.tokens_per_second:,.0f}",
                f"{recipe.padding:.0%}",
                f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
                f"{recipe.memory or 0:,.0f}",
            )
        )
    return "\n".join(
        [
            table(["recipe", "samples/s", "tokens/s", "padding", "times as fast", "memory, MB"], lines),
            "",
            f"{report.task}, {report.steps} steps of {report.batch} rows, the same for all, in {report.rounds} rounds; "
            f"{_machine(report.environment)}.",
        ]
    )


def methods(found: dict[str, Any]) -> str:
    """Return the table of all training methods that `benchmarks.studies.methods` compared."""
    kinds = "rouge1", "rougeLsum"
    lines = [("*the base*", *(interval(found["base"][kind]) for kind in kinds), *[""] * 4)]
    for name, one in found["methods"].items():
        lines.append(
            (
                name,
                *(interval(one["scores"][kind]) for kind in kinds),
                f"{one['trainable_parameters']:,}",
                f"{one['megabytes']:.1f}",
                f"{one['samples_per_second']:.2f}",
                f"{one['seconds'] / 60:.0f}",
            )
        )
    task, rows, first = found["task"], found["rows"], next(iter(found["methods"].values()))
    return "\n".join(
        [
            table(
                ["method", "ROUGE-1", "ROUGE-Lsum", "trained parameters", "MB", "samples/s", "minutes in all"], lines
            ),
            "",
            f"{task['name']}, base `{task['base']}`, {rows['train']:,} rows, {first['steps']} steps, {rows['test']} "
            f"test rows; learning rate {first['learning_rate']:g}, full {found['methods']['full']['learning_rate']:g}; "
            f"{first['precision']}; {_machine(found['environment'])}.",
        ]
    )


def packs(found: dict[str, Any]) -> str:
    """Return samples per second of adapter groups by row length and precision, one table per measured device."""
    return "\n\n".join(_packs(one) for one in (found, _result("packs-h100")))


def _packs(found: dict[str, Any]) -> str:
    kinds = list(dict.fromkeys((one["source"], one["target"], one["precision"]) for one in found["timings"]))
    cells: dict[int, dict[tuple[int, int, str], str]] = {}
    for one in found["timings"]:
        speed, times = one["samples_per_second"], one["times"]
        cell = "does not fit" if speed is None else f"{speed:,.1f} ({times:.2f})"
        cells.setdefault(one["adapters"], {})[one["source"], one["target"], one["precision"]] = cell
    lines = [(str(count or "alone"), *(row.get(kind, "") for kind in kinds)) for count, row in cells.items()]
    columns = ["adapters", *(f"{source} + {target} tokens, {precision}" for source, target, precision in kinds)]
    return "\n".join(
        [
            table(columns, lines),
            "",
            f"Samples/s (times as many as alone) of r {found['rank']} on {found['targets']}, {found['rows']} rows of "
            f"each adapter a step; {_machine(found['environment'], found['device'])}.",
        ]
    )


def bank(found: dict[str, Any]) -> str:
    """Return the tables of `benchmarks.studies.bank`, for adapters on all linear layers and on a few."""
    few = _result("bank-qv")
    longer = {one["rows"]: one["ratio"] - 1 for one in few["steps_of"] if one["rows"] == one["adapters"]}
    return (
        f"{bank_tables(found)}; {_machine(found['environment'])}.\n\nOn {few['targets']} alone an adapter has "
        f"{few['loading'][0]['megabytes_each']:.1f} MB, and a step takes {longer[1]:.0%} longer than the base's for "
        f"one row, {longer[8]:.0%} for eight rows with unlike adapters."
    )


def _machine(environment: dict[str, str], device: str = "cpu") -> str:
    if device != "cpu":
        return f"{environment['gpus']} beside {environment['cores'].split()[0]} cores of {environment['cpu']}"
    return f"{cores(int(environment['cores'].split()[0]), environment['cpu'])} ({environment['cpu flags']})"


def sizes() -> str:
    """Return parameters and memory of every FLAN-T5 size, from `lora_ft.training.memory_estimates`."""
    task = load_task("dialogue-summary", ["lengths.source=512", "lengths.target=128"])
    batch = task_batch(task)
    columns = ["GiB", "parameters", "generate, fp32 / bf16", "LoRA", "checkpointed", "full", "checkpointed"]
    lines = []
    for size in computed_sizes(task):
        pairs = (" / ".join(f"{way / GIB:,.1f}" for way in ways) for ways in (size.generate, size.lora, size.full))
        generate, lora, full = pairs
        checkpointed = [f"{way / GIB:,.1f}" for way in size.checkpointed]
        parameters = f"{size.parameters / 1e6:,.0f} M"
        lines.append((size.name, parameters, generate, lora, checkpointed[0], full, checkpointed[1]))
    return "\n".join(
        [
            table(columns, lines),
            "",
            f"{batch.rows} rows of {batch.source} tokens in and {batch.target} out; LoRA of r {task.lora.r} on all "
            "linear layers; AdamW with float32 weights; checkpointed: bf16 with gradient checkpointing. On a "
            f"CPU the heap grows to {HEAP:g} times the activations.",
        ]
    )


TABLES = {
    "dialogsum": dialogsum,
    "peers": engines,
    "cuda": engines,
    "training": training,
    "methods": methods,
    "packs": packs,
    "bank": bank,
}


PAGES = {
    "README.md": ("dialogsum",),
    "docs/guides/training.md": ("sizes", "methods"),
    "docs/guides/many-adapters.md": ("packs",),
    "docs/guides/banks.md": ("bank",),
    "docs/guides/precisions.md": ("peers",),
    "docs/guides/benchmarking.md": ("training",),
    "docs/guides/gpus.md": ("cuda",),
}
"""Tables of each page, in their order on the page."""


def updated(page: str) -> str:
    """Return the text of a page with every table in its place.

    Args:
        page: Path of the page in the repository.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in PAGES[page]:
        begin = f"<!-- results: {name} (python -m benchmarks.readme) -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(END)
        content = sizes() if name == "sizes" else TABLES[name](_result(name))
        text = f"{head}{begin}\n{content}\n{END}{tail}"
    return text


def _result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def main() -> None:
    """Write the tables of all pages."""
    for page in PAGES:
        write_text(ROOT / page, updated(page))


if __name__ == "__main__":
    run_command(main)

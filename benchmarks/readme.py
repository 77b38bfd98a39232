"""Write the result tables of the README and the documentation from the committed measurements.

python -m benchmarks.readme          # rewrite the tables of all pages
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import lines, serving_tables
from benchmarks.command import run_command
from benchmarks.lines import result
from benchmarks.studies.bank import tables as bank_tables
from benchmarks.studies.decoding import tables as decoding_tables
from benchmarks.studies.defaults import tables as defaults_tables
from benchmarks.studies.kernel import tables as kernel_tables
from benchmarks.studies.running_batch import tables as running_batch_tables
from benchmarks.studies.search import tables as search_tables
from benchmarks.studies.shapes import tables as shapes_tables
from benchmarks.studies.shrinking import tables as shrinking_tables
from lora_ft.bench.report import BenchReport
from lora_ft.bench.training_report import TrainingReport
from lora_ft.core.files import write_text
from lora_ft.core.hardware import cores
from lora_ft.reports.markdown import interval, table
from lora_ft.tasks.files import load_task
from lora_ft.training.memory_estimates import GIB, HEAP, task_batch
from lora_ft.training.memory_estimates import model_sizes as computed_sizes

ROOT = Path(__file__).parents[1]
END = "<!-- end of results -->"


def dialogsum(results: dict[str, Any]) -> str:
    """Return the table of training speed, ROUGE and the fp32 bundle on DialogSum."""
    scores, before = results["evaluation"]["scores"]["scores"], results["evaluation"]["baseline"]["scores"]
    difference, parity = results["evaluation"]["difference"]["rouge1"], results["parity"]
    training, size = results["training"], results["megabytes"]
    speed = training["speed"]
    kinds = ("rouge1", "rouge2", "rougeL")
    rows = [
        ("ROUGE-1 / 2 / L before", " / ".join(f"{before[kind]['mean']:.1f}" for kind in kinds)),
        ("ROUGE-1 / 2 / L after", " / ".join(f"{scores[kind]['mean']:.1f}" for kind in kinds)),
        ("ROUGE-1 with its 95 % interval; paired gain", f"{interval(scores['rouge1'])}; {interval(difference)}"),
        (
            "size of adapter / merged checkpoint / ONNX bundle",
            f"{size['adapter']:.1f} / {size['checkpoint']:.0f} / {size['bundle']:.0f} MB",
        ),
        (
            "training",
            f"{training['rows']['train']:,} rows, {training['steps']} steps, {speed['seconds_in_steps'] / 60:.0f} min, "
            f"{speed['samples_per_second']} samples/s, {training['precision']}",
        ),
        ("same text from ONNX and PyTorch", f"{parity['identical_rows']} of {parity['rows']} rows"),
        *(
            (
                f"time of PyTorch / ONNX, 128 tokens in, 64 out, batch {row['batch']}",
                f"{1000 * row['median']['torch']:.0f} / {1000 * row['median']['onnx']:.0f} ms "
                f"(speed-up {row['ratio']['onnx']:.1f})",
            )
            for row in results["latency"]
        ),
    ]
    tested, machine = results["evaluation"]["rows"], _machine(results["environment"])
    about = f"Base `offline`, {tested} test rows; {machine}, fp32 generation."
    return f"{table(['FLAN-T5-small on DialogSum', ''], rows)}\n\n{about}"


def engines(results: dict[str, Any]) -> str:
    """Return the table of engines from `lora-ft bench`: score, time and speed-up."""
    report = BenchReport.model_validate(results)
    timings = [case.timings for case in report.cases]
    columns = [
        "engine",
        "MB",
        "ROUGE-1",
        "difference from fp32, paired",
        *(f"batch {case.batch}, ms" for case in report.cases),
        "speed-up",
    ]
    lines = []
    for engine in report.contestants:
        if any(engine.name not in timing for timing in timings):
            continue
        quality, engine_timings = report.quality.get(engine.name), [timing[engine.name] for timing in timings]
        change = quality.difference if quality else None
        lines.append(
            (
                f"{engine.name} (failed)" if engine.error else engine.name,
                f"{engine.megabytes:.0f}",
                f"{quality.score.value:.1f}" if quality else "",
                f"{change.value:+.1f} [{change.low:+.1f}, {change.high:+.1f}]" if change else "",
                *(f"{1000 * statistics.median(timing.total):,.0f}" for timing in engine_timings),
                " / ".join(f"{timing.ratio.value:.1f}" for timing in engine_timings),
            )
        )
    case, rows = report.cases[0], max((quality.rows for quality in report.quality.values()), default=0)
    return "\n".join(
        [
            table(columns, lines),
            "",
            f"{case.source} tokens in, {case.new} out, greedy; {rows} test rows; medians of {report.suite.rounds} "
            f"rounds ({report.verdict}); {_machine(report.environment, report.contestants[0].provider)}; harness "
            f"overhead {report.harness.share:.1%}.",
        ]
    )


def training(results: dict[str, Any]) -> str:
    """Return the table of `lora-ft bench train`."""
    report = TrainingReport.model_validate(results)
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
            table(["recipe", "samples/s", "tokens/s", "padding", "speed-up", "memory, MB"], lines),
            "",
            f"{report.task}, {report.steps} steps of {report.batch} rows, the same rows for all recipes, in "
            f"{report.rounds} rounds; {_machine(report.environment)}.",
        ]
    )


def methods(results: dict[str, Any]) -> str:
    """Return the table of the training methods that `benchmarks.studies.methods` compares."""
    kinds = "rouge1", "rougeLsum"
    lines = [("*the base*", *(interval(results["base"][kind]) for kind in kinds), *[""] * 4)]
    for name, method in results["methods"].items():
        lines.append(
            (
                name,
                *(interval(method["scores"][kind]) for kind in kinds),
                f"{method['trainable_parameters']:,}",
                f"{method['megabytes']:.1f}",
                f"{method['samples_per_second']:.2f}",
                f"{method['seconds'] / 60:.0f}",
            )
        )
    task, rows, first = results["task"], results["rows"], next(iter(results["methods"].values()))
    full_rate = results["methods"]["full"]["learning_rate"]
    return "\n".join(
        [
            table(["method", "ROUGE-1", "ROUGE-Lsum", "trained parameters", "MB", "samples/s", "total minutes"], lines),
            "",
            f"{task['name']}, base `{task['base']}`, {rows['train']:,} rows, {first['steps']} steps, {rows['test']} "
            f"test rows; learning rate {first['learning_rate']:g}, full {full_rate:g}; "
            f"{first['precision']}; {_machine(results['environment'])}.",
        ]
    )


def groups(results: dict[str, Any]) -> str:
    """Return samples per second of adapter groups by row length and precision, one table per measured device."""
    return "\n\n".join(_group_table(device_results) for device_results in (results, result("groups-h100")))


def _group_table(device_results: dict[str, Any]) -> str:
    kinds = list(
        dict.fromkeys((timing["source"], timing["target"], timing["precision"]) for timing in device_results["timings"])
    )
    cells: dict[int, dict[tuple[int, int, str], str]] = {}
    for timing in device_results["timings"]:
        speed, times = timing["samples_per_second"], timing["times"]
        cell = "does not fit" if speed is None else f"{speed:,.1f} ({times:.2f})"
        cells.setdefault(timing["adapters"], {})[timing["source"], timing["target"], timing["precision"]] = cell
    lines = [(str(count or "alone"), *(row.get(kind, "") for kind in kinds)) for count, row in cells.items()]
    columns = ["adapters", *(f"{source} + {target} tokens, {precision}" for source, target, precision in kinds)]
    return "\n".join(
        [
            table(columns, lines),
            "",
            f"Samples/s (speed-up over one adapter alone); rank {device_results['rank']} on "
            f"{device_results['targets']}, {device_results['rows']} rows of each adapter per step; "
            f"{_machine(device_results['environment'], device_results['device'])}.",
        ]
    )


def bank(results: dict[str, Any]) -> str:
    """Return the tables of `benchmarks.studies.bank` on all linear layers, and a sentence about fewer layers."""
    fewer = result("bank-qv")
    size = fewer["loading"][0]["megabytes_each"]
    slowdowns = {step["rows"]: step["ratio"] - 1 for step in fewer["steps_of"] if step["rows"] == step["adapters"]}
    return (
        f"{bank_tables(results)}; {_machine(results['environment'])}.\n\nOn {fewer['targets']} only, an adapter takes "
        f"{size:.1f} MB. A step then takes {slowdowns[1]:.0%} longer than a step of the base for one row, and "
        f"{slowdowns[8]:.0%} longer for eight rows with different adapters."
    )


def serving(results: dict[str, Any]) -> str:
    """Return the tables of `benchmarks.studies.serving`, what they were measured on, and its warnings."""
    plan = results["plan"]
    about = (
        f"DialogSum, {results['adapters']} adapters in turn ({results['precision']}), {plan['rows']} rows, Poisson "
        f"arrivals; {_machine(results['environment'])}. {serving_tables.limits(results['servers'], plan['slo'])}"
    )
    warnings = [f"- {warning}" for warning in results["warnings"]]
    return "\n\n".join([serving_tables.tables(results), about, *(["\n".join(warnings)] if warnings else [])])


def serving_line(results: dict[str, Any]) -> str:
    """Return the sentence about `lora-ft serve` in the README: goodput, and how it compares with each other server."""
    first, *others = [server for server in results["servers"] if server["name"] != serving_tables.ENGINE]
    load = serving_tables.at_knee(first)
    if load is None:
        return ""
    comparisons = [
        f"{first['goodput'] / server['goodput']:.1f} times that of {server['name']}"
        for server in others
        if serving_tables.at_knee(server) is not None
    ]
    first_text = 1000 * load["first_token"]["p50"]
    return "\n".join(
        [
            f"`{first['name']}` with {results['adapters']} adapters mixed ({results['precision']}), on "
            f"{_machine(results['environment'])}: {first['goodput']:.1f} requests/s within "
            f"{results['plan']['slo']:g} times the time of the row alone, first text after {first_text:.0f} ms.",
            *([f"Its goodput is {', '.join(comparisons)}."] if comparisons else []),
            "[All figures](docs/guides/benchmarking.md#servers).",
        ]
    )


def running_batch(results: dict[str, Any]) -> str:
    """Return the tables of `benchmarks.studies.running_batch`, and what they were measured on."""
    return (
        f"{running_batch_tables(results)}\n\nMedians of {results['rounds']} rounds; a bank of {results['adapters']} "
        f"adapters ({results['precision']}); {_machine(results['environment'])}."
    )


def _with_machine(tables: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    """Return a function that also says where the tables of a study were measured."""
    return lambda results: f"{tables(results)} {_machines(results)}."


def shapes(results: dict[str, Any]) -> str:
    """Return the table of `benchmarks.studies.shapes`, and what it was measured on."""
    return (
        f"{shapes_tables(results['figures'])}\n\nRandom weights; medians of {results['rounds']} rounds; memory beyond "
        f"the loaded model; {_machine(results['environment'])}. A step is the difference between requests by "
        f"{results['steps']} tokens, divided by as many, so it is uncertain beside a long encoder."
    )


def kernel(results: dict[str, Any]) -> str:
    """Return the table of `benchmarks.studies.kernel`, and what it was measured on."""
    return (
        f"{kernel_tables(results)}\n\nFLAN-T5-small, {results['source']} tokens in, {results['new']} out; medians of "
        f"{results['rounds']} rounds in turns; {_machine(results['environment'])}."
    )


def _machines(results: dict[str, Any]) -> str:
    measured = [results] if "environment" in results else results["tasks"].values()
    return ", ".join(dict.fromkeys(_machine(each["environment"]) for each in measured))


def _machine(environment: dict[str, str], device: str = "cpu") -> str:
    if device != "cpu":
        return f"{environment['gpus']} with {environment['cores'].split()[0]} cores of {environment['cpu']}"
    return f"{cores(int(environment['cores'].split()[0]), environment['cpu'])} ({environment['cpu flags']})"


def sizes() -> str:
    """Return parameters and memory of every FLAN-T5 size, from `lora_ft.training.memory_estimates`."""
    task = load_task("dialogue-summary", ["lengths.source=512", "lengths.target=128"])
    batch = task_batch(task)
    columns = ["GiB", "parameters", "generate, fp32 / bf16", "LoRA", "checkpointed", "full", "checkpointed"]
    lines = []
    for size in computed_sizes(task):
        pairs = (" / ".join(f"{need / GIB:,.1f}" for need in needs) for needs in (size.generate, size.lora, size.full))
        generate, lora, full = pairs
        checkpointed = [f"{need / GIB:,.1f}" for need in size.checkpointed]
        parameters = f"{size.parameters / 1e6:,.0f} M"
        lines.append((size.name, parameters, generate, lora, checkpointed[0], full, checkpointed[1]))
    return "\n".join(
        [
            table(columns, lines),
            "",
            f"{batch.rows} rows of {batch.source} tokens in and {batch.target} out; LoRA of rank {task.lora.r} on all "
            "linear layers; AdamW with float32 weights; checkpointed: bf16 with gradient checkpointing. On a CPU "
            f"in fp32, the heap grows to {HEAP:g} times the size of the activations.",
        ]
    )


TABLES = {
    "dialogsum": dialogsum,
    "peers": engines,
    "cuda": engines,
    "training": training,
    "methods": methods,
    "groups": groups,
    "bank": bank,
    "running_batch": running_batch,
    "decoding": _with_machine(decoding_tables),
    "search": _with_machine(search_tables),
    "defaults": _with_machine(defaults_tables),
    "shrinking": _with_machine(shrinking_tables),
    "shapes": shapes,
    "kernel": kernel,
    "kernel_line": lines.kernel_line,
    "serving": serving,
    "serving_line": serving_line,
    "dialogsum_line": lines.dialogsum_line,
    "banking77_line": lines.banking77_line,
    "medquad_line": lines.medquad_line,
    "gpu_groups_line": lines.gpu_groups_line,
    "optimum_line": lines.optimum_line,
    "sharing_line": lines.sharing_line,
    "prompt_lookup": lines.prompt_lookup,
}
SOURCES = {
    "serving_line": "serving",
    "kernel_line": "kernel",
    "dialogsum_line": "scores",
    "banking77_line": "scores",
    "medquad_line": "scores",
    "gpu_groups_line": "groups-h100",
    "optimum_line": "peers",
    "sharing_line": "sharing",
    "prompt_lookup": "lookup-phrases",
}
"""Result files of tables that do not have the name of their file."""


PAGES = {
    "README.md": ("kernel_line", "dialogsum", "serving_line", "dialogsum_line"),
    "docs/guides/training.md": ("sizes", "shrinking", "methods", "defaults"),
    "docs/guides/many-adapters.md": ("groups",),
    "docs/guides/decoding.md": ("decoding", "prompt_lookup"),
    "docs/guides/search.md": ("search",),
    "docs/guides/banks.md": ("bank",),
    "docs/guides/serving.md": ("running_batch", "sharing_line"),
    "docs/guides/precisions.md": ("kernel", "peers", "optimum_line", "shapes"),
    "docs/guides/benchmarking.md": ("training", "serving"),
    "docs/guides/classification.md": ("banking77_line",),
    "docs/guides/question-answering.md": ("medquad_line",),
    "docs/guides/gpus.md": ("gpu_groups_line", "cuda"),
}
"""Names of the tables on each page."""


def updated(page: str) -> str:
    """Return the text of a page with all of its tables rewritten. A table without a result file is empty.

    Args:
        page: Path of the page in the repository.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in PAGES[page]:
        begin = f"<!-- results: {name} (python -m benchmarks.readme) -->"
        head, _, remainder = text.partition(begin)
        _, _, tail = remainder.partition(END)
        text = f"{head}{begin}\n{_content(name)}{END}{tail}"
    return text


def _content(name: str) -> str:
    """Return a table with its line end, or "" before the first measurement."""
    if name == "sizes":
        return f"{sizes()}\n"
    source = SOURCES.get(name, name)
    if not (lines.RESULTS / f"{source}.json").is_file():
        return ""
    return f"{TABLES[name](result(source))}\n"


def main() -> None:
    """Write the tables of all pages."""
    for page in PAGES:
        write_text(ROOT / page, updated(page))


if __name__ == "__main__":
    run_command(main)

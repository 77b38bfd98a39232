"""Sentences and small tables of the documentation whose figures are committed measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_ft.bench.report import BenchReport
from lora_ft.reports.markdown import table

RESULTS = Path(__file__).parent / "results"


def result(name: str) -> dict[str, Any]:
    """Return the content of a result file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def kernel_line(results: dict[str, Any]) -> str:
    """Return the sentence about the kernel in the README."""
    ratios = [case["ratio"][0] for case in results["cases"]]
    return (
        "`make kernels` adds an optional encoder and decoder in C++ for x86 processors with AVX-512 VNNI: whole "
        f"requests are {min(ratios):.1f} to {max(ratios):.1f} times as fast ([figures](docs/guides/precisions.md))."
    )


def dialogsum_line(scores: dict[str, Any]) -> str:
    """Return the README's sentence about DialogSum with all rows."""
    task = scores["tasks"]["dialogsum-full"]
    rows, score = task["training"]["rows"]["train"], task["scores"]["rouge1"]["mean"]
    return (
        f"Trained on all {rows:,} rows, ROUGE-1 is {score:.1f}; "
        f"[docs/scores.md](docs/scores.md) has {len(scores['tasks'])} tasks."
    )


def banking77_line(scores: dict[str, Any]) -> str:
    """Return the sentence about the accuracy on Banking77."""
    task = scores["tasks"]["banking77"]
    return (
        f"On Banking77 (77 labels), accuracy is {task['scores']['accuracy']['mean']:.1f} after "
        f"{task['training']['rows']['train']:,} rows ([Scores](../scores.md#banking77))."
    )


def medquad_line(scores: dict[str, Any]) -> str:
    """Return the sentence about the gain on MedQuAD."""
    task = scores["tasks"]["medquad"]
    before, after = (task[name]["rouge1"]["mean"] for name in ("baseline", "scores"))
    return (
        f"On MedQuAD's short answers, ROUGE-1 rose from {before:.1f} to {after:.1f} ([Scores](../scores.md#medquad))."
    )


def gpu_groups_line(results: dict[str, Any]) -> str:
    """Return the sentence about adapter groups on a GPU."""
    together = 16
    times = [
        timing["times"]
        for timing in results["timings"]
        if (timing["adapters"], timing["precision"]) == (together, "bf16")
    ]
    return (
        f"On {results['environment']['gpus']} in bf16, {together} adapters trained {min(times):.0f} to "
        f"{max(times):.0f} times as many samples per second as one."
    )


def optimum_line(peers: dict[str, Any]) -> str:
    """Return the sentence about the score of standard 8-bit quantization."""
    name = "optimum/int8"
    change = BenchReport.model_validate(peers).quality[name].difference
    if change is None:
        return ""
    return f"Standard 8-bit quantization (`{name}`) lost {-change.value:.1f} points of ROUGE-1 here."


def sharing_line(results: dict[str, Any]) -> str:
    """Return the sentence about the memory of one more process of a server."""
    figures = [f"{bundle['private']:.0f} MB in {bundle['precision']}" for bundle in results["bundles"]]
    processes = {bundle["processes"] for bundle in results["bundles"]}
    return (
        f"One more process for FLAN-T5-small takes {', '.join(figures)} (private memory, with "
        f"{max(processes)} processes beside each other)."
    )


def prompt_lookup(phrases: dict[str, Any]) -> str:
    """Return the table of `benchmarks.studies.prompt_lookup` in int8, on the graphs and on the kernel."""
    sources = [("graphs", phrases)]
    sources += [("kernel", result(name)) for name in ("lookup-kernel", "lookup-kernel-fhir", "lookup-kernel-jfleg")]
    lines = [
        (
            study["task"].removesuffix("-005"),
            engine,
            str(gain["batch"]),
            f"{gain['phrases']:,}" if gain["phrases"] else "source only",
            f"{gain['calls'] / gain['plain_calls']:.2f}",
            f"{gain['ratio']:.2f}",
        )
        for engine, study in sources
        for gain in study["lookup"]
    ]
    columns = ["task", "decoder", "batch", "phrases", "calls of the decoder", "speed-up"]
    counts = sorted({gain["rows"] for _, study in sources for gain in study["lookup"]})
    same = min(gain["same"] for _, study in sources for gain in study["lookup"])
    about = (
        f"int8; {counts[0]} to {counts[-1]} rows; calls and speed-up relative to greedy search, medians of the rounds; "
        f"{'all' if same == 1 else f'at least {same:.0%} of the'} answers equal those of greedy search."
    )
    return f"{table(columns, lines)}\n\n{about}"

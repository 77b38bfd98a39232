"""Tables of results on stdout, 80 columns wide where stdout is not a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from lora_ft.core.files import folder_size
from lora_ft.reports.terminal import console, distinct, shorten, show_pairs, table

if TYPE_CHECKING:
    from lora_ft.bank import BankResult
    from lora_ft.data.chats.summary import ChatSummary
    from lora_ft.deployment.bank_entries import Entry
    from lora_ft.evaluate import BankEvaluation, Evaluation
    from lora_ft.evaluation.comparison import Comparison
    from lora_ft.export_onnx import Exported
    from lora_ft.merge_adapters import MergedAdapters
    from lora_ft.run_registry import AdapterEntry
    from lora_ft.runs.run import Run
    from lora_ft.tasks.files import InvalidTaskError
    from lora_ft.tasks.schema import Task
    from lora_ft.train_many import TrainManyResult
    from lora_ft.training.memory_estimates import ModelSize
    from lora_ft.validate import Validation

_MAX_ERRORS = 50  # maximum rows of a table
_MAX_LABELS = 20
_MAX_CHATS = 20


def show_task_errors(error: InvalidTaskError) -> None:
    """Print every error of a task file."""
    screen = console()
    screen.print(f"{error.path}: {len(error.errors)} error{'s' * (len(error.errors) > 1)}")
    for details in error.errors[:_MAX_ERRORS]:
        screen.print(f"  {details}", soft_wrap=True)
    if len(error.errors) > _MAX_ERRORS:
        screen.print(f"  and {len(error.errors) - _MAX_ERRORS:,} more")


def show_validation(report: Validation) -> None:
    """Print the result of `validate`."""
    screen = console()
    for details in report.errors:
        screen.print(f"error: {details}", soft_wrap=True)
    if report.chats:
        screen.print(_chat_table(report.chats))
    if report.lengths:
        lengths = table("tokens", "rows", "50 %", "90 %", "95 %", "longest", "limit", "cut", "<unk>")
        for side in report.lengths:
            lengths.add_row(
                side.name,
                f"{side.rows:,}",
                *map(str, side.percentiles),
                str(side.limit),
                f"{side.cut_share:.1%}",
                f"{side.unknown_share:.2%}",
            )
        screen.print(lengths)
    if report.labels:
        screen.print(_label_table(report.labels))
    for warning in report.warnings:
        screen.print(f"warning: {warning}")
    if report.plan is not None:
        for line in report.plan.lines():
            screen.print(f"plan: {line}")
    screen.print(f"task '{report.task}' {'has errors' if report.errors else 'is ready to train'}")


def _chat_table(chats: Sequence[ChatSummary]) -> Table:
    """Return a table of the size and days of each chat. One row sums up the chats after the first ones."""
    rows = table("chat", "messages", "people", "first", "last")
    for chat in chats[:_MAX_CHATS]:
        rows.add_row(Text(shorten(chat.place, 32)), f"{chat.messages:,}", f"{chat.people:,}", *_days([chat]))
    if more := chats[_MAX_CHATS:]:
        rows.add_row(f"… {len(more):,} more", f"{sum(chat.messages for chat in more):,}", "", *_days(more))
    return rows


def _days(chats: Sequence[ChatSummary]) -> tuple[str, str]:
    return f"{min(chat.first for chat in chats)}", f"{max(chat.last for chat in chats)}"


def _label_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Return a table of rows by label and split. Among many labels, it shows the most and the least frequent."""
    rows = table("label", *next(iter(counts.values())))
    labels = list(counts)
    shown = labels if len(labels) <= _MAX_LABELS else [*labels[: _MAX_LABELS // 2], "…", *labels[-_MAX_LABELS // 2 :]]
    for label in shown:
        rows.add_row(Text(shorten(label)), *(f"{count:,}" for count in counts.get(label, {}).values()))
    return rows


def show_run(run: Run) -> None:
    """Print the facts of a finished run."""
    from lora_ft.runs.run import CURVES

    metrics, speed = run.metrics, run.metrics["speed"]
    best = metrics["best_metric"]
    pairs = {
        "run": str(run.folder),
        run.trained.name: f"{metrics['trainable_parameters']:,} parameters trained, "
        f"{folder_size(run.trained) / 1e6:.1f} MB",
        "steps": f"{metrics['steps']:,}" + (f" (best: {metrics['best_step']:,})" if best is not None else ""),
        "loss": f"{metrics['train_loss']:.3f}",
    }
    if best is not None:
        pairs[f"validation {run.task.train.metric_for_best_model}"] = f"{best:.2f}"
    if speed["samples_per_second"]:
        pairs["speed"] = (
            f"{speed['samples_per_second']} samples/s ({speed['samples_per_second_second_half']} in the second half), "
            f"{speed['padding_share']:.1%} padding, {speed['seconds']:,.0f} s in all"
        )
    if (run.folder / CURVES).is_dir():
        pairs["curves"] = f"tensorboard --logdir {run.folder / CURVES}"
    show_pairs(pairs)


def show_evaluation(result: Evaluation) -> None:
    """Print scores, those of the base if it was scored, and how they were computed."""
    screen = console()
    models = [result.model, *([result.baseline] if result.baseline else [])]
    scores_table = table(
        "0-100 [95 %]",
        *(shorten(scores.model) for scores in models),
        *(["difference"] if result.baseline else []),
    )
    for name in result.scores:
        cells = [str(scores.scores[name]) for scores in models]
        scores_table.add_row(name, *cells, *([str(result.difference[name])] if result.difference else []))
    if result.model.valid_labels is not None:
        scores_table.add_row("valid labels", *(f"{scores.valid_labels:.1%}" for scores in models))
    figures: Sequence[tuple[str, list[str]]] = [
        ("cut at the limit", [f"{scores.cut_share:.1%}" for scores in models]),
        ("tokens", [f"{scores.mean_tokens:.1f}" for scores in models]),
        ("samples/s", [f"{scores.samples_per_second:.1f}" for scores in models]),
    ]
    for name, cells in figures:
        scores_table.add_row(name, *cells)
    screen.print(scores_table)
    screen.print(f"{result.rows:,} {result.split} rows of '{result.task}'")
    for how, names in groupby(result.how, result.how.__getitem__):
        screen.print(f"{', '.join(names)}: {how}")
    for warning in result.warnings:
        screen.print(f"warning: {warning}")
    if result.predictions is not None:
        screen.print(f"answers: {result.predictions}", soft_wrap=True)


def show_bank_evaluation(evaluation: BankEvaluation) -> None:
    """Print the main score of each adapter of a bank, then warnings."""
    screen = console()
    compared = any(scored.difference for scored in evaluation.scored.values())
    scores_table = table(
        "adapter", "rows", "split", "score", "0-100 [95 %]", *(["over the base"] if compared else []), "cut"
    )
    scores_table.columns[2].justify = scores_table.columns[3].justify = "left"
    for name, scored in evaluation.scored.items():
        score = evaluation.by[name]
        gain = [scored.difference[score].signed if scored.difference else ""] if compared else []
        cut = f"{scored.model.cut_share:.1%}"
        scores_table.add_row(
            shorten(name), f"{scored.rows:,}", scored.split, score, str(scored.scores[score]), *gain, cut
        )
    if evaluation.scored:
        screen.print(scores_table)
    for name, scored in evaluation.scored.items():
        for warning in scored.warnings:
            screen.print(f"{name}: warning: {warning}")
    for name, reason in evaluation.failed.items():
        screen.print(f"{name}: not scored: {reason}", soft_wrap=True)


def show_comparison(comparison: Comparison, rows: int) -> None:
    """Print scores and differences, then the answers of the `rows` most changed rows."""
    screen = console()
    scores_table = table(*comparison.columns)
    scores_table.columns[1].justify = "left"
    for score, name, *figures in comparison.lines():
        scores_table.add_row(score, shorten(name), *figures)
    screen.print(scores_table)
    for how, names in comparison.how.items():
        screen.print(f"{', '.join(names)}: {how}")
    screen.print(comparison.note)
    for warning in comparison.warnings:
        screen.print(f"warning: {warning}", soft_wrap=True)
    for row in comparison.order[:rows]:
        screen.print(f"\nrow {row + 1}, {comparison.by}", style="bold")
        for contender in comparison.contenders:
            answer = " ".join(contender.answers[row].split())
            screen.print(f"  {shorten(contender.name)} {contender.rows[comparison.by][row]:.1f}: {answer}")
        screen.print(f"  reference: {' '.join(comparison.references[row][0].split())}")


def show_export(result: Exported) -> None:
    """Print the exported folder, and the score and speed of each precision that was tried."""
    screen = console()
    if result.tradeoff:
        precisions = table("precision", "MB", "ms/token b1", "b8", "score", "against fp32", "same", "passes")
        for row in result.tradeoff:
            precisions.add_row(
                row.precision,
                f"{row.megabytes:.0f}",
                *(f"{milliseconds:.2f}" for milliseconds in row.milliseconds.values()),
                f"{row.score.mean:.1f}",
                row.difference.signed,
                f"{row.identical:.0%}",
                "yes" if row.holds else "no",
            )
        screen.print(precisions)
        screen.print(f"a precision passes if its score drops by at most {result.max_drop:g} points", style="dim")
    screen.print(f"{result.out}: {result.precision}, {result.bytes / 1e6:.1f} MB; {result.parity}", soft_wrap=True)


def show_bank(result: BankResult) -> None:
    """Print the adapters that were added to a bank."""
    screen = console()
    for name, report in result.reports.items():
        screen.print(f"{name}: {report}", soft_wrap=True)
    screen.print(f"{result.out}: {result.precision}, {result.bytes / 1e6:.1f} MB", soft_wrap=True)


def show_entries(entries: Sequence[Entry]) -> None:
    """Print the adapters of a bank."""
    rows = table("adapter", "MB", "PyTorch's text", "divergence", "score")
    for entry in entries:
        score = f"{entry.gate['metric']} {entry.gate['difference']:+.1f}" if entry.gate else ""
        same = f"{entry.report.identical_rows} of {entry.report.rows}"
        rows.add_row(shorten(entry.name, 24), f"{entry.bytes / 1e6:.1f}", same, f"{entry.report.divergence:.2g}", score)
    console().print(rows)


def show_sizes(task: Task, estimates: Sequence[ModelSize]) -> None:
    """Print the memory of every FLAN-T5 size under a task's limits."""
    from lora_ft.training.memory_estimates import GIB, HEAP, task_batch

    screen, batch = console(), task_batch(task)
    rows = table("GiB", "parameters", "generate", "bf16", "LoRA", "bf16", "ckpt", "full", "bf16", "ckpt")
    for size in estimates:
        lora, full = size.checkpointed
        memory = (*size.generate, *size.lora, lora, *size.full, full)
        rows.add_row(size.name, f"{size.parameters / 1e6:,.0f} M", *(f"{bytes_ / GIB:,.1f}" for bytes_ in memory))
    screen.print(rows)
    screen.print(
        f"{batch.rows} rows of {batch.source} tokens in, {batch.target} out; LoRA r {task.lora.r} on all layers, "
        "AdamW; fp32, bf16 autocast, and bf16 with gradient checkpointing (ckpt). "
        f"On a CPU in fp32 the heap grows to {HEAP:g} times the activations.",
    )


def show_runs(result: TrainManyResult, out: Path) -> None:
    """Print the run of each of several tasks, and the best one of a grid."""
    screen = console()
    runs = table("adapter", "steps", "best", "loss", "validation", "samples/s", "")
    names = distinct([run.task.name for run in result.runs], 28)
    for run in result.runs:
        metrics = run.metrics
        score = metrics["best_metric"]
        runs.add_row(
            names[run.task.name],
            f"{metrics['steps']:,}",
            f"{metrics['best_step'] or '–'}",
            f"{metrics['train_loss']:.3f}",
            "–" if score is None else f"{run.task.train.metric_for_best_model} {score:.2f}",
            f"{metrics['speed']['samples_per_second'] or '–'}",
            "best" if run.task.name == result.best else "",
        )
    screen.print(runs)
    for name, reason in result.failed.items():
        screen.print(f"failed: {name}: {reason}", soft_wrap=True)
    screen.print(f"{len(result.runs)} runs in {out}", soft_wrap=True)


def show_adapters(entries: Sequence[AdapterEntry]) -> None:
    """Print the adapters of a folder of runs."""
    adapters = table("adapter", "base", "rank", "MB", "validation", "trained")
    names = distinct([entry.name for entry in entries], 26)
    for entry in entries:
        adapters.add_row(
            f"{names[entry.name]}{' *' if entry.best else ''}",
            shorten(entry.run.task.base, 14),
            f"{entry.rank}",
            f"{entry.bytes / 1e6:.1f}",
            "–" if entry.score is None else f"{entry.metric} {entry.score:.2f}",
            f"{entry.trained:%Y-%m-%d}",
        )
    console().print(adapters)


def show_adapter(entry: AdapterEntry) -> None:
    """Print the training and the recorded scores of one adapter."""
    from lora_ft.models.adapter_files import adapter_config
    from lora_ft.runs.records import score_values

    task, metrics = entry.run.task, entry.run.metrics
    layers = adapter_config(entry.run.adapter)["target_modules"]
    pairs = {
        "adapter": str(entry.run.adapter),
        "task": task.name,
        "base": task.base,
        "layers": layers if isinstance(layers, str) else ", ".join(sorted(layers)),
        "rank": f"{entry.rank}, {metrics['trainable_parameters']:,} parameters, {entry.bytes / 1e6:.1f} MB",
        "rows": f"{metrics['rows']['train']:,} for training, {metrics['rows']['validation']:,} for validation",
        "steps": f"{metrics['steps']:,} of {metrics['global_batch']} rows, learning rate {task.train.learning_rate:g}",
        "loss": f"{metrics['train_loss']:.3f}",
        "trained": f"{entry.trained:%Y-%m-%d %H:%M}, {metrics.get('hardware', 'hardware not recorded')}",
    }
    if entry.score is not None:
        pairs[f"validation {entry.metric}"] = f"{entry.score:.2f} at step {metrics['best_step'] or 0:,}"
    for split, record in entry.run.scores.items():
        scores = score_values(record["scores"]).items()
        pairs[f"{split} rows"] = ", ".join(f"{name} {score['mean']:.1f}" for name, score in scores)
    show_pairs(pairs)


def show_merged(result: MergedAdapters, out: Path, method: str) -> None:
    """Print the scores of a combined adapter next to those of the original ones."""
    scores = table("task", "rows", "score", "its own", "combined", "change")
    for score in result.scores:
        name = score.task if score.adapter == score.task else f"{score.adapter} on {score.task}"
        scores.add_row(
            shorten(name, 28),
            f"{score.rows:,}",
            score.metric,
            f"{score.alone:.1f}",
            f"{score.combined:.1f}",
            f"{score.combined - score.alone:+.1f}",
        )
    if result.scores:
        console().print(scores)
    console().print(f"{out}: {method}, rank {result.rank}", soft_wrap=True)

"""Results as tables on stdout, 80 columns wide where there is no terminal to ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from lora_ft.core.files import folder_size
from lora_ft.reports.terminal import console, shorten, show_pairs, table

if TYPE_CHECKING:
    from lora_ft.bank import Shelved
    from lora_ft.data.chats.summary import ChatSummary
    from lora_ft.deployment.bank_entries import Entry
    from lora_ft.evaluate import BankEvaluation, Evaluation
    from lora_ft.evaluation.comparison import Comparison
    from lora_ft.export_onnx import Exported
    from lora_ft.runs.run import Run
    from lora_ft.tasks.files import TaskFaults
    from lora_ft.tasks.schema import Task
    from lora_ft.validate import Validation

_MOST_FAULTS = 50  # that are shown of a file


_LABELS = 20  # in a table
_CHATS = 20


def show_faults(error: TaskFaults) -> None:
    """Every fault of a task file."""
    screen = console()
    screen.print(f"{error.path}: {len(error.faults)} fault{'s' * (len(error.faults) > 1)}")
    for fault in error.faults[:_MOST_FAULTS]:
        screen.print(f"  {fault}", soft_wrap=True)
    if len(error.faults) > _MOST_FAULTS:
        screen.print(f"  and {len(error.faults) - _MOST_FAULTS:,} more")


def show_validation(report: Validation) -> None:
    """What `validate` found."""
    screen = console()
    for fault in report.faults:
        screen.print(f"fault: {fault}", soft_wrap=True)
    if report.chats:
        screen.print(_chat_table(report.chats))
    if report.lengths:
        lengths = table("tokens", "rows", "50 %", "90 %", "95 %", "longest", "limit", "cut", "<unk>")
        for side in report.lengths:
            lengths.add_row(
                side.what,
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
    screen.print(f"task '{report.task}' {'has faults' if report.faults else 'is ready to train'}")


def _chat_table(chats: Sequence[ChatSummary]) -> Table:
    """Return what each chat holds; of many chats the first ones, and all of the others together."""
    made = table("chat", "messages", "people", "first", "last")
    for chat in chats[:_CHATS]:
        made.add_row(Text(shorten(chat.place, 32)), f"{chat.messages:,}", f"{chat.people:,}", *_days([chat]))
    if rest := chats[_CHATS:]:
        made.add_row(f"… {len(rest):,} more", f"{sum(chat.messages for chat in rest):,}", "", *_days(rest))
    return made


def _days(chats: Sequence[ChatSummary]) -> tuple[str, str]:
    return f"{min(chat.first for chat in chats)}", f"{max(chat.last for chat in chats)}"


def _label_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Return the rows of each label by split; of many labels the commonest and the rarest."""
    made = table("label", *next(iter(counts.values())))
    labels = list(counts)
    shown = labels if len(labels) <= _LABELS else [*labels[: _LABELS // 2], "…", *labels[-_LABELS // 2 :]]
    for label in shown:
        made.add_row(Text(shorten(label)), *(f"{count:,}" for count in counts.get(label, {}).values()))
    return made


def show_run(run: Run) -> None:
    """What training left."""
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
    """Scores, the base's beside them where it was scored, and what they rest on."""
    screen = console()
    models = [result.scores, *([result.baseline] if result.baseline else [])]
    made = table(
        "0-100 [95 %]",
        *(shorten(scores.model) for scores in models),
        *(["difference"] if result.baseline else []),
    )
    for name in result.scores.scores:
        cells = [str(scores.scores[name]) for scores in models]
        made.add_row(name, *cells, *([str(result.difference[name])] if result.difference else []))
    if result.scores.valid_labels is not None:
        made.add_row("valid labels", *(f"{scores.valid_labels:.1%}" for scores in models))
    rows: Sequence[tuple[str, list[str]]] = [
        ("cut at the limit", [f"{scores.cut_share:.1%}" for scores in models]),
        ("tokens", [f"{scores.mean_tokens:.1f}" for scores in models]),
        ("samples/s", [f"{scores.samples_per_second:.1f}" for scores in models]),
    ]
    for name, cells in rows:
        made.add_row(name, *cells)
    screen.print(made)
    screen.print(f"{result.rows:,} {result.split} rows of '{result.task}'")
    for how, names in groupby(result.how, result.how.__getitem__):
        screen.print(f"{', '.join(names)}: {how}")
    for warning in result.warnings:
        screen.print(f"warning: {warning}")
    if result.predictions is not None:
        screen.print(f"answers: {result.predictions}", soft_wrap=True)


def show_bank_evaluation(found: BankEvaluation) -> None:
    """A line for each adapter of a bank with the score that its task goes by, and warnings below."""
    screen = console()
    compared = any(one.difference for one in found.scored.values())
    made = table("adapter", "rows", "score", "0-100 [95 %]", *(["over the base"] if compared else []), "cut")
    made.columns[2].justify = "left"
    for name, one in found.scored.items():
        score = found.by[name]
        gain = [one.difference[score].signed if one.difference else ""] if compared else []
        made.add_row(
            shorten(name), f"{one.rows:,}", score, str(one.scores.scores[score]), *gain, f"{one.scores.cut_share:.1%}"
        )
    if found.scored:
        screen.print(made)
    for name, one in found.scored.items():
        for warning in one.warnings:
            screen.print(f"{name}: warning: {warning}")
    for name, reason in found.failed.items():
        screen.print(f"{name}: not scored: {reason}", soft_wrap=True)


def show_comparison(found: Comparison, rows: int) -> None:
    """Scores and differences, and so many of the rows that changed most, with what was answered to them."""
    screen = console()
    made = table("score", "model", "0-100 [95 %]", "difference [95 %]", "p")
    made.columns[1].justify = "left"
    for score, name, *figures in found.lines():
        made.add_row(score, shorten(name), *figures)
    screen.print(made)
    for how, names in found.how.items():
        screen.print(f"{', '.join(names)}: {how}")
    screen.print(f"{len(found.prompts):,} rows; {found.note}")
    for warning in found.warnings:
        screen.print(f"warning: {warning}", soft_wrap=True)
    for at in found.order[:rows]:
        screen.print(f"\nrow {at + 1}, {found.by}", style="bold")
        for one in found.contenders:
            answer = " ".join(one.answers[at].split())
            screen.print(f"  {shorten(one.name)} {one.rows[found.by][at]:.1f}: {answer}")
        screen.print(f"  reference: {' '.join(found.references[at][0].split())}")


def show_export(done: Exported) -> None:
    """What was published, and what the other precisions would have cost."""
    screen = console()
    if done.tradeoff:
        made = table("precision", "MB", "ms/token b1", "b8", "score", "against fp32", "same", "holds")
        for row in done.tradeoff:
            made.add_row(
                row.precision,
                f"{row.megabytes:.0f}",
                *(f"{milliseconds:.2f}" for milliseconds in row.milliseconds.values()),
                f"{row.score.mean:.1f}",
                row.difference.signed,
                f"{row.identical:.0%}",
                "yes" if row.holds else "no",
            )
        screen.print(made)
        screen.print(f"a precision holds where its score loses no more than {done.max_drop:g}", style="dim")
    screen.print(f"{done.out}: {done.precision}, {done.bytes / 1e6:.1f} MB; {done.parity}", soft_wrap=True)


def show_shelved(done: Shelved) -> None:
    """The adapters that were put into a bank."""
    screen = console()
    for name, report in done.reports.items():
        screen.print(f"{name}: {report}", soft_wrap=True)
    screen.print(f"{done.out}: {done.precision}, {done.bytes / 1e6:.1f} MB", soft_wrap=True)


def show_entries(entries: Sequence[Entry]) -> None:
    """The adapters of a bank."""
    made = table("adapter", "MB", "PyTorch's text", "divergence", "score")
    for one in entries:
        score = f"{one.gate['metric']} {one.gate['difference']:+.1f}" if one.gate else ""
        same = f"{one.report.identical_rows} of {one.report.rows}"
        made.add_row(shorten(one.name, 24), f"{one.bytes / 1e6:.1f}", same, f"{one.report.divergence:.2g}", score)
    console().print(made)


def show_sizes(task: Task) -> None:
    """The memory of every FLAN-T5 under a task's limits."""
    from lora_ft.training.memory_estimates import GIB, HEAP, sizes, task_batch

    screen, batch = console(), task_batch(task)
    made = table("GiB", "parameters", "generate", "bf16", "LoRA", "bf16", "ckpt", "full", "bf16", "ckpt")
    for size in sizes(task):
        lora, full = size.checkpointed
        ways = (*size.generate, *size.lora, lora, *size.full, full)
        made.add_row(size.name, f"{size.parameters / 1e6:,.0f} M", *(f"{way / GIB:,.1f}" for way in ways))
    screen.print(made)
    screen.print(
        f"{batch.rows} rows of {batch.source} tokens in, {batch.target} out; LoRA r {task.lora.r} on all layers, "
        "AdamW; fp32, bf16 autocast, and that with gradient checkpointing (ckpt). "
        f"On a CPU the heap grows to {HEAP:g} times the activations.",
    )

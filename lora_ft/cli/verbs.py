"""The verbs of `lora-ft`. Jobs are imported inside them: `lora-ft generate BUNDLE` works without torch."""

from __future__ import annotations

import json
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_ft.cli import adapters, bank, bench, hub
from lora_ft.cli.bundles import export, verify
from lora_ft.cli.chat import chat
from lora_ft.cli.choices import GoOnFrom, Out, Overwrite, SplitChoice, going_on_from
from lora_ft.cli.train import train
from lora_ft.core.streams import answer, say
from lora_ft.reports.screen import Screen

app = typer.Typer(
    name="lora-ft",
    help="Small LoRA adapters for FLAN-T5: train, merge, score with ROUGE, generate, export to ONNX. "
    "Any command takes --debug for a full traceback.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class DtypeChoice(StrEnum):
    """What a checkpoint's weights are stored in."""

    fp32 = "fp32"
    bf16 = "bf16"


TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="Task file (YAML), or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. --set train.learning_rate=5e-4.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows generated together.")]


@app.command()
def validate(
    task: TaskArgument,
    set_: Overrides = [],  # noqa: B006  (typer copies it)
    from_: GoOnFrom = None,
) -> int:
    """Check a task file and its data, and show what training would do. All faults are shown at once."""
    from lora_ft.cli.tables import show_faults, show_validation
    from lora_ft.tasks.files import TaskFaults
    from lora_ft.validate import validate as job

    try:
        with Screen() as screen:
            report = job(task, [*set_, *going_on_from(from_)], progress=screen)
    except TaskFaults as faults:
        show_faults(faults)
        return faults.exit_code
    show_validation(report)
    return 2 if report.faults else 0


app.command()(train)


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN|ADAPTER", help="A run, or a folder saved by peft.")],
    out: Out,
    base: Annotated[str | None, typer.Option(help="Another copy of the base the run was trained on.")] = None,
    dtype: Annotated[DtypeChoice, typer.Option(help="Stored as; the merge itself is done in fp32.")] = DtypeChoice.fp32,
    overwrite: Overwrite = False,
    push_to_hub: hub.PushTo = None,
    private: hub.Private = False,
) -> None:
    """Merge a run's adapter into its base: a checkpoint that needs no peft."""
    from lora_ft.merge import merge as job
    from lora_ft.models.peft_adapter import open_adapter

    destination = hub.destination(push_to_hub, private=private)
    with Screen() as screen:
        report = job(open_adapter(run), out, base=base, dtype=dtype.value, overwrite=overwrite, progress=screen)
    found = (
        f"merged and adapter logits differ by at most {report.difference:.2g} on {report.rows} rows"
        if report.rows
        else "all weights are the run's own"
    )
    say(f"{report.out}: {report.bytes / 1e6:.1f} MB; {found}")
    hub.upload(out, destination)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="RUN|BANK", help="A run, a bank; or an adapter or another model, with --task.")
    ],
    base: Annotated[str | None, typer.Option(help="Instead of the base that a run or an adapter names.")] = None,
    split: Annotated[SplitChoice, typer.Option(help="Which rows.")] = SplitChoice.test,
    limit: Annotated[int | None, typer.Option(min=1, help="Score the first so many rows.")] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Score the untouched base beside it.")] = False,
    task: Annotated[str | None, typer.Option(help="Task file to score on, where the model carries none.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Of a bank: which one; by default each on its own task, with --task the base.")
    ] = None,
    set_: Overrides = [],  # noqa: B006
    predictions: Annotated[Path | None, typer.Option(help="Write every answer there (jsonl).")] = None,
    batch_size: BatchSize = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> int:
    """Score a model by the task's metrics, each with its 95 % interval, on the 0-100 scale."""
    from lora_ft.cli.tables import show_bank_evaluation, show_evaluation
    from lora_ft.core.errors import UsageError
    from lora_ft.evaluate import evaluate as job
    from lora_ft.evaluate import evaluate_bank
    from lora_ft.export.runtime.manifest import is_bank
    from lora_ft.tasks.files import load_task

    options: dict[str, Any] = {"split": split.value, "limit": limit, "baseline": baseline, "batch_size": batch_size}
    if not task and not adapter and is_bank(Path(model)):
        if predictions:
            raise UsageError("--predictions is one file, and a bank has many adapters", "name one with --adapter")
        with Screen() as screen:
            every = evaluate_bank(model, overrides=set_, progress=screen, **options)
        if as_json:
            say(json.dumps(every.as_dict(), indent=2, ensure_ascii=False))
        else:
            show_bank_evaluation(every)
        return int(bool(every.failed))
    loaded = load_task(_task_of(model, task, set_), set_) if task or (set_ and not adapter) else None
    with Screen() as screen:
        result = job(
            model,
            task=loaded,
            adapter=adapter,
            base=base,
            overrides=set_,
            predictions=predictions,
            progress=screen,
            **options,
        )
    if as_json:
        say(json.dumps(result.as_dict(), indent=2, ensure_ascii=False))
    else:
        show_evaluation(result)
    return 0


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Runs, or files of answers (jsonl).")],
    split: Annotated[SplitChoice, typer.Option(help="Which rows.")] = SplitChoice.test,
    metric: Annotated[
        list[str], typer.Option("--metric", help="Instead of the task's: rouge, bleu, chrf, f1, …; repeatable.")
    ] = [],  # noqa: B006
    task: Annotated[str | None, typer.Option(help="Task file whose settings hold; by default the first run's.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with all texts side by side.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows to show of those that changed most.")] = 3,
    page_rows: Annotated[int, typer.Option(min=1, help="The same, on the page.")] = 200,
) -> None:
    """Compare what evaluated runs answered: differences to the first, 95 % interval, p, the rows that changed most."""
    from lora_ft.cli.tables import show_comparison
    from lora_ft.compare import compare as job
    from lora_ft.core.files import write_text
    from lora_ft.core.output_paths import refuse_file
    from lora_ft.reports.comparison_page import render

    if html is not None:
        refuse_file(html, "--html", inputs=models)
    found = job(models, split=split.value, metrics=metric, task=task)
    show_comparison(found, rows)
    if html is not None:
        write_text(html, render(found, rows=page_rows))
        say(f"page: {html}")


@app.command()
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, an adapter, a checkpoint, a bundle or a base.")],
    text: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; else lines of stdin.")] = None,
    source: Annotated[
        Path | None,
        typer.Option("--input", help="Rows (jsonl, json, csv, tsv, parquet) or lines of text (other files)."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Write jsonl: each row and its output.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --output.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="The text is the whole prompt; use no template.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    min_new_tokens: Annotated[int | None, typer.Option(min=0)] = None,
    num_beams: Annotated[int | None, typer.Option(min=1)] = None,
    length_penalty: Annotated[float | None, typer.Option()] = None,
    early_stopping: Annotated[
        bool | None, typer.Option("--early-stopping", help="End when as many beams as wanted have ended.")
    ] = None,
    do_sample: Annotated[bool | None, typer.Option("--do-sample", help="Sample instead of greedy search.")] = None,
    temperature: Annotated[float | None, typer.Option()] = None,
    top_k: Annotated[int | None, typer.Option(min=0)] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    no_repeat_ngram_size: Annotated[int | None, typer.Option(min=0)] = None,
    repetition_penalty: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of sampling; without one each call draws another.")
    ] = None,
    prompt_lookup: Annotated[
        bool | None, typer.Option(help="Of a bundle: draft from the source. Default: fp32 alone.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Of a bundle: print each answer as it is made.")] = False,
    provider: Annotated[str, typer.Option(help="Of a bundle: cpu, cuda or auto.")] = "auto",
    adapter: Annotated[
        str | None, typer.Option(help="Of a bank: which one; by default a row's own column `adapter`, else the base.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Instead of the base that a run or an adapter names.")] = None,
    wrap: Annotated[
        int | None, typer.Option(min=10, help="Break answers at so many columns; on a terminal at 80.")
    ] = None,
    batch_size: BatchSize = 16,
) -> None:
    """Answer texts or rows, put through the model's own prompt."""
    from lora_ft.cli.rows import read_inputs, write_outputs
    from lora_ft.core.errors import UsageError
    from lora_ft.core.output_paths import refuse_file
    from lora_ft.generate import answers as job
    from lora_ft.generate import drawn_seed
    from lora_ft.generate import stream as stream_answers
    from lora_ft.models.loading import open_model

    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
        "do_sample": do_sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "prompt_lookup": prompt_lookup,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if wrap and (stream or output):
        raise UsageError("--wrap is for answers on stdout that are not streamed", "leave one of them out")
    if output is not None:
        refuse_file(output, "--output", inputs=[source] if source else [], own=overwrite)
    rows = read_inputs(text or [], source)
    with Screen() as screen:
        opened = open_model(model, provider=provider, adapter=adapter, base=base)
        if opened.notice:
            screen.note(opened.notice)
        if (drawn := drawn_seed(opened, given, rows)) is not None:
            given["seed"] = drawn
        if stream:
            bits = stream_answers(opened, rows, given, raw=raw)
            first = next(bits, "")
        else:
            answers = job(opened, rows, given, raw=raw, batch_size=batch_size, progress=screen)
        if drawn is not None:  # told only now, as the options were refused above if they are wrong
            screen.note(f"sampled with seed {drawn}; repeat it with --seed {drawn}")
    if stream:
        for bit in chain([first], bits):
            answer(bit, end="")
    else:
        cut = [one.source_cut for one in answers]
        write_outputs(rows, [one.text for one in answers], output, wrap, cut=cut)


app.command()(export)
app.command()(verify)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print what a bug report needs: versions, CPU, memory, GPUs, ONNX Runtime, hub, offline base."""
    from lora_ft.doctor import examine
    from lora_ft.reports.terminal import show_pairs

    facts = examine()
    if as_json:
        say(json.dumps(facts, indent=2))
    else:
        show_pairs(facts)


@app.command()
def sizes(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Its batch, lengths and rank of LoRA are used.")] = (
        "dialogue-summary"
    ),
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Parameters of every FLAN-T5, and the memory that generating and training take."""
    from lora_ft.cli.tables import show_sizes
    from lora_ft.tasks.files import load_task

    show_sizes(load_task(task, set_))


@app.command()
def recipes() -> None:
    """List the task files that ship with lora-ft."""
    from lora_ft.tasks.files import recipe_file, recipes

    for name in recipes():
        say(f"{name}\t{recipe_file(name)}")


app.command()(chat)
app.command()(hub.push)
app.add_typer(adapters.app, name="adapters")
app.add_typer(bank.app, name="bank")
app.add_typer(bench.app, name="bench")


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything it makes.")] = Path("quickstart"),
    base: Annotated[
        str | None, typer.Option(help="By default google/flan-t5-small, or offline without the hub.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """The whole path on the embedded example: train, merge, score, export, verify, generate, compare speeds."""
    from lora_ft.cli.quickstart import quickstart as job

    job(out, base=base, overwrite=overwrite)


def _task_of(model: str, task: str | None, overrides: list[str]) -> str:
    """The task file to apply --set to: the one named, or the model's own."""
    from lora_ft.core.errors import UsageError
    from lora_ft.runs.run import TASK

    if task:
        return task
    own = Path(model) / TASK
    if not own.is_file():
        raise UsageError(f"--set {overrides[0]} needs a task, and {model} carries none", "add --task TASK")
    return str(own)

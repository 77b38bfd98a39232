"""The command `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ft.cli.options import Base as BaseOption
from lora_ft.cli.options import (
    BatchSize,
    DoSample,
    Json,
    MaxNewTokens,
    Mbr,
    NoRepeatNgramSize,
    Overwrite,
    Provider,
    Quiet,
    RepetitionPenalty,
    SamplingSeed,
    Temperature,
    TopK,
    TopP,
    generation_options,
)
from lora_ft.core.streams import answer
from lora_ft.reports.screen import Screen

if TYPE_CHECKING:
    from lora_ft.cli.rows import Input


def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run, adapter, checkpoint, bundle, bank or base.")],
    text: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts. Default: the lines of stdin.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="Rows (jsonl, json, csv, tsv, parquet), or lines."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write: each row and its output (jsonl).")
    ] = None,
    overwrite: Overwrite = False,
    raw: Annotated[bool, typer.Option("--raw", help="Use texts as whole prompts, without the template.")] = False,
    max_new_tokens: MaxNewTokens = None,
    min_new_tokens: Annotated[int | None, typer.Option(min=0, help="Minimum answer length, in tokens.")] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Number of beams; 1 is greedy search.")] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="Exponent on the length of beams. Above 0 favors longer answers.")
    ] = None,
    early_stopping: Annotated[
        bool | None, typer.Option("--early-stopping", help="Stop once num_beams beams have ended.")
    ] = None,
    do_sample: DoSample = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    mbr: Mbr = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: SamplingSeed = None,
    prompt_lookup: Annotated[
        bool | None, typer.Option(help="Draft tokens from the prompt (bundles). Default: if lossless.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print answers as they grow (bundles).")] = False,
    provider: Provider = "auto",
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="NAME",
            help="Adapter of a bank, by name. Default: the row's column `adapter`, else the base.",
        ),
    ] = None,
    base: BaseOption = None,
    wrap: Annotated[
        int | None, typer.Option(min=10, help="Line width of answers. Default: 80 on a terminal, else none.")
    ] = None,
    batch_size: BatchSize = 16,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Generate answers to texts or rows.

    Texts and rows fill the model's own prompt. With --json, rows and their outputs are printed as a list.
    """
    from lora_ft.cli.rows import OUTPUT, read_inputs, write_outputs
    from lora_ft.core.errors import UsageError
    from lora_ft.core.output_paths import refuse_file
    from lora_ft.generate import answers as generate_answers
    from lora_ft.models.loading import load

    options = generation_options(context)
    if wrap and (stream or out or as_json):
        raise UsageError("--wrap applies to answers on stdout", "leave out --stream, --out and --json, or --wrap")
    if stream and (out or as_json):
        raise UsageError("--stream prints answers on stdout", "leave out --out and --json")
    if out is not None:
        refuse_file(out, "--out", inputs=[source] if source else [], overwrite=overwrite)
    rows = read_inputs(text or [], source)
    with Screen(quiet=quiet) as screen:
        if (out or as_json) and any(isinstance(row, Mapping) and OUTPUT in row for row in rows):
            screen.note(f"the rows have a column '{OUTPUT}': the answers are written in its place")
        opened = load(model, provider=provider, adapter=adapter, base=base)
        if opened.notice:
            screen.note(opened.notice)
        drawn = _set_seed(opened, options, rows)
        if stream:
            pieces = _start_stream(opened, rows, options, raw=raw)
        else:
            answers = generate_answers(opened, rows, options, raw=raw, batch_size=batch_size, progress=screen)
        if drawn is not None:  # only now, since invalid options are refused first
            screen.note(f"sampled with seed {drawn}; repeat it with --seed {drawn}")
    if stream:
        for piece in pieces:
            answer(piece, end="")
        return
    cut = [entry.source_cut for entry in answers]
    write_outputs(rows, [entry.text for entry in answers], out, wrap, cut=cut, as_json=as_json)


def _set_seed(model: Any, options: dict[str, Any], rows: Sequence[Input]) -> int | None:
    """Add a new seed to the options if answers are sampled without one, and return it."""
    from lora_ft.generate import new_seed

    seed = new_seed(model, options, rows)
    if seed is not None:
        options["seed"] = seed
    return seed


def _start_stream(model: Any, rows: Sequence[Input], options: dict[str, Any], *, raw: bool) -> chain[str]:
    """Return the pieces of all answers. The first is generated here, so that invalid options fail before printing."""
    from lora_ft.generate import stream

    pieces = stream(model, rows, options, raw=raw)
    return chain([next(pieces, "")], pieces)

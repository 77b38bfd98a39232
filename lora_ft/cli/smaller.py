"""The commands that make a smaller model: `shrink`, `distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_ft.cli.options import (
    Adapter,
    Base,
    Json,
    MaxNewTokens,
    Mbr,
    Out,
    Overwrite,
    Provider,
    Quiet,
    Temperature,
    TopK,
    generation_options,
)
from lora_ft.cli.results import show
from lora_ft.core.streams import say
from lora_ft.reports.screen import Screen


def shrink(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Hub name, checkpoint or offline.")],
    out: Out,
    decoder_layers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Decoder layers to keep. Default: all.")
    ] = None,
    encoder_layers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Encoder layers to keep. Default: all.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a smaller base with some of the layers.

    Evenly spaced layers are kept, the first and the last among them. Train the result before use, e.g. by distilling a
    larger model into it (train.distill).
    """
    from lora_ft.shrink import shrink as shrink_base

    with Screen(quiet=quiet) as screen:
        result = shrink_base(
            base,
            out,
            decoder_layers=decoder_layers,
            encoder_layers=encoder_layers,
            overwrite=overwrite,
            progress=screen,
        )
    show(result, lambda shrunk: say(str(shrunk)), as_json=as_json)


def distill(
    context: typer.Context,
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="Run, adapter, checkpoint, bundle or base.")],
    source: Annotated[
        Path, typer.Option("--input", metavar="FILE", help="Rows (jsonl, json, csv, tsv, parquet), or lines.")
    ],
    out: Out,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Number of beams; 1 is greedy search.")] = None,
    mbr: Mbr = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    max_new_tokens: MaxNewTokens = None,
    provider: Provider = "auto",
    adapter: Adapter = None,
    base: Base = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished job.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let a teacher write targets for rows.

    FOLDER/rows.jsonl is a data file for any task. To learn a teacher's probabilities instead, set train.distill.
    """
    from lora_ft.cli.rows import read_inputs
    from lora_ft.distill import distill as write_targets
    from lora_ft.models.loading import load

    rows = read_inputs([], source)
    with Screen(quiet=quiet) as screen:
        result = write_targets(
            load(teacher, provider=provider, adapter=adapter, base=base),
            rows,
            out,
            options=generation_options(context),
            resume=resume,
            overwrite=overwrite,
            progress=screen,
        )
    show(result, lambda distilled: say(str(distilled)), as_json=as_json)

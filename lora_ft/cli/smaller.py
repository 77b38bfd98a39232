"""The commands that make a smaller model: `shrink`."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_ft.cli.options import Json, Out, Overwrite, Quiet
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

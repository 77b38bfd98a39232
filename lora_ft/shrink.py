"""The verb `shrink`: keep some layers of a base, and write a smaller base to train on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from lora_ft.core.errors import UsageError
from lora_ft.core.files import folder_size, staged_folder, write_json
from lora_ft.core.output_paths import making
from lora_ft.core.plain import plain_fields
from lora_ft.core.progress import Progress, Silent
from lora_ft.models.bases import find_base, load_model
from lora_ft.models.checkpoints import save_checkpoint

RECORD = "shrink.json"  # record of the shrinking: base and kept layers


@dataclass(frozen=True)
class Shrunk:
    """The result of `shrink`.

    Attributes:
        out: Folder of the new base.
        encoder_layers, decoder_layers: Numbers of the base's layers that were kept, from 0.
        parameters_before, parameters: Number of parameters of the base, and of the new one.
        bytes: Size of the new base.
    """

    out: Path
    encoder_layers: list[int]
    decoder_layers: list[int]
    parameters_before: int
    parameters: int
    bytes: int

    def __str__(self) -> str:
        return (
            f"{self.out}: {self.parameters / 1e6:.1f} of {self.parameters_before / 1e6:.1f} million parameters, "
            f"{self.bytes / 1e6:.1f} MB; kept encoder layers {_listed(self.encoder_layers)}, "
            f"decoder layers {_listed(self.decoder_layers)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the types of JSON."""
        return plain_fields(self)


def shrink(
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    decoder_layers: int | None = None,
    encoder_layers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Shrunk:
    """Keep evenly spaced layers of a base, its first and last among them, and write them as a new base.

    The new base answers worse until it is trained; see the guide `training.md`. An answer takes one encoder pass, but a
    decoder step for each token, so decoder layers are the ones to remove.

    Args:
        base: Hub name, checkpoint or "offline".
        out: Folder to write.
        decoder_layers: Number of decoder layers to keep. Default: all.
        encoder_layers: Number of encoder layers to keep. Default: all.
        overwrite: Replace `out` if lora-ft wrote it.
        progress: Receives the base's notice.

    Raises:
        UsageError, LoraFtError: The base cannot be read, has too few layers, or `out` exists.
    """
    source, out = find_base(os.fspath(base)), Path(out)
    if source.notice:
        (progress or Silent()).note(source.notice)
    with (
        making(out, overwrite=overwrite, inputs=[source.folder]),
        staged_folder(out, overwrite=overwrite) as staging,
    ):
        model: Any = load_model(source.folder)
        before = model.num_parameters()
        kept = {
            "encoder_layers": _keep(model.encoder, encoder_layers, "encoder_layers"),
            "decoder_layers": _keep(model.decoder, decoder_layers, "decoder_layers"),
        }
        if before == model.num_parameters():
            raise UsageError("every layer would be kept", "pass fewer decoder_layers or encoder_layers")
        model.config.num_layers, model.config.num_decoder_layers = map(len, kept.values())
        if model.config.num_decoder_layers > model.config.num_layers:  # transformers' cache would have too few layers
            raise UsageError(
                f"there are more decoder layers than encoder layers (got {model.config.num_decoder_layers} and "
                f"{model.config.num_layers})",
                "keep fewer decoder_layers",
            )
        save_checkpoint(model, source.folder, staging)
        versions = {name: version(name) for name in ("lora-ft", "torch", "transformers")}
        write_json(staging / RECORD, {"base": source.name, **kept, "versions": versions})
    return Shrunk(out, **kept, parameters_before=before, parameters=model.num_parameters(), bytes=folder_size(out))


def _keep(stack: Any, count: int | None, name: str) -> list[int]:
    """Keep `count` layers of an encoder or a decoder, and return their numbers.

    The first layer stays, since it holds the table of relative positions that all layers use.
    """
    layers = len(stack.block)
    count = layers if count is None else count
    if not 1 <= count <= layers:
        raise UsageError(f"{name} is out of range (got {count}, the base has {layers})", f"pass 1 to {layers}")
    kept = [round(i * (layers - 1) / max(count - 1, 1)) for i in range(count)]
    stack.block = nn.ModuleList(stack.block[i] for i in kept)
    return kept


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))

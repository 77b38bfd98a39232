"""The choice between the graph `encoder` of a bundle and the kernel, by the answers to the bundle's probe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.encoder_kernel import EncoderKernel
from lora_ft.export.runtime.kernel_choice import NEAR, disagreement, forced_answers, read_probe
from lora_ft.export.runtime.manifest import ADAPTERS
from lora_ft.export.runtime.model import Model


def choose_encoder(model: Model, folder: Path, manifest: Mapping[str, Any], special: SpecialTokens) -> str:
    """Let the kernel encode a model's sources if its answers agree with those after the graph; return what encodes.

    Args:
        model: The model, whose steps have been chosen.
        folder: Folder of the bundle.
        manifest: Content of its manifest.json.
        special: Its special tokens.
    """
    if model.provider != "cpu" or ADAPTERS in manifest:
        return "graph: banks and GPUs have no kernel"
    try:
        kernel = EncoderKernel(folder, manifest["precision"], model.threads)
    except ValueError as error:
        return f"graph: {error}"
    ids, mask, before = forced_answers(read_probe(folder), special)
    shape = len(model.cache_names) // 2, *model.head_shape, kernel.vocabulary
    theirs = Model(folder, shape, model.threads).encode(ids, mask)  # of a model of its own, so that its graph is closed
    model.encoder = kernel
    answers = [model.logits(source, model.cache(len(ids)), before) for source in (model.encode(ids, mask), theirs)]
    if (difference := disagreement(*answers)) > NEAR:
        model.encoder = None
        return f"graph: the answers to the probe differ, by {difference:.3f} of the range of the logits"
    return f"kernel ({kernel.instructions})"

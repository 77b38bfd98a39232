"""The choice between the graphs of a bundle and the kernel, by the answers to the bundle's probe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.tokenizer import pad, ragged
from lora_ft.export.runtime.bank import Bank
from lora_ft.export.runtime.kernel import StepKernel
from lora_ft.export.runtime.manifest import ADAPTED, PROBE
from lora_ft.export.runtime.model import Model

# Largest share of a row's range of logits by which the kernel may prefer another token than the graphs.
NEAR = 0.02
_CHECKED = 16  # tokens of each answer of the probe


def choose_kernel(
    model: Model, folder: Path, manifest: Mapping[str, Any], special: SpecialTokens, bank: Bank | None = None
) -> str:
    """Let the kernel take a model's steps if it can and agrees with the graphs, and return what takes them.

    In a bank, the base and one adapter are compared, since all adapters share their graphs.

    Args:
        model: The model.
        folder: Folder of the bundle.
        manifest: Content of its manifest.json.
        special: Its special tokens.
        bank: Its adapters, if it is a bank.
    """
    if model.provider != "cpu":
        return "graphs: GPUs have no kernel"
    inputs = bank.inputs if bank else {}
    try:
        kernel = StepKernel(folder, manifest["precision"], model.threads, inputs.get(ADAPTED + "step", ()))
    except ValueError as error:
        return f"graphs: {error}"
    shape = len(model.cache_names) // 2, *model.head_shape, kernel.vocabulary
    graphs = Model(folder, shape, model.threads, inputs=inputs)  # its own, so that its graphs of steps are closed
    probes: list[tuple[str | None, Any]] = [(None, read_probe(folder))]
    if bank:
        probes += [(name, bank.probe(name)) for name in bank.names[:1]]
    model.kernel = kernel
    for name, probe in probes:
        ids, mask, before = forced_answers(probe, special)
        source = graphs.encode(ids, mask, bank.select([name] * len(ids)) if bank else None)
        ours, theirs = (each.logits(source, each.cache(len(ids)), before, copy=False) for each in (model, graphs))
        if (difference := disagreement(ours, theirs)) > NEAR:
            model.kernel = None
            return f"graphs: the kernel's answers to the probe differ, by {difference:.3f} of the range of the logits"
    return f"kernel ({kernel.instructions})"


def read_probe(folder: Path) -> Any:
    """Return the probe of a bundle."""
    return json.loads((folder / PROBE).read_text(encoding="utf-8"))


def forced_answers(probe: Any, special: SpecialTokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sources of a probe, their mask, and the tokens before each token of its answers, all int64.

    Args:
        probe: The probe of a bundle or an adapter.
        special: Special tokens of the bundle.
    """
    (ids, mask), tokens = ragged(probe["sources"], special.pad), pad(probe["tokens"], special.pad)[:, :_CHECKED]
    return ids, mask, np.concatenate([np.full((len(ids), 1), special.start), tokens[:, :-1]], axis=1)


def disagreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest share of a row's range of logits by which the choice of `ours` is not the best of `theirs`.

    Args:
        ours, theirs: Logits of the same tokens, float32 [b, n, vocabulary].
    """
    choice = np.take_along_axis(theirs, ours.argmax(axis=2, keepdims=True), axis=2)[..., 0]
    best = theirs.max(axis=2)
    return float(((best - choice) / (best - theirs.min(axis=2) + 1e-9)).max())

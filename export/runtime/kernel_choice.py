"""The choice between a bundle's graphs and the kernels of steps and encoder, by the answers to the bundle's probe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.tokenizer import pad, ragged
from lora_ft.export.runtime.bank import Bank
from lora_ft.export.runtime.encoder_kernel import EncoderKernel
from lora_ft.export.runtime.graph_files import PublishedFiles
from lora_ft.export.runtime.kernel import StepKernel
from lora_ft.export.runtime.manifest import ADAPTED, PROBE
from lora_ft.export.runtime.model import Model

# Largest difference of the kernel's logits from the graphs'. Of FLAN-T5-small in int8 and int8-w4, rounded inputs turn
# the last bits of a sum into 0.02 to 0.04. A single wrong head gives 0.06 to 0.15, and values off by one place 0.9.
NEAR = 0.1
_CHECKED = 16  # tokens of each answer of the probe


def choose_kernels(
    model: Model, folder: Path, manifest: Mapping[str, Any], special: SpecialTokens, bank: Bank | None = None
) -> tuple[str, str]:
    """Let the kernels take a model's steps and encode its sources, each if it can and agrees with the graphs.

    Args:
        model: The model.
        folder: Folder of the bundle.
        manifest: Content of its manifest.json.
        special: Its special tokens.
        bank: Its adapters, if it is a bank.

    Returns:
        What takes the steps, and what encodes.
    """
    comparison = _Comparison(model, folder, special, bank)
    return comparison.steps(manifest["precision"]), comparison.encoder(manifest["precision"])


class _Comparison:
    """The kernels of a bundle beside its graphs, which are a model of their own, so that they are closed at the end."""

    def __init__(self, model: Model, folder: Path, special: SpecialTokens, bank: Bank | None) -> None:
        self._model, self._folder, self._special, self._bank = model, folder, special, bank

    @cached_property
    def _graphs(self) -> Model:
        kernel = self._model.kernel or self._model.encoder
        assert kernel is not None
        shape = len(self._model.cache_names) // 2, *self._model.head_shape, kernel.vocabulary
        inputs = self._bank.inputs if self._bank else {}
        return Model(PublishedFiles(self._folder), shape, self._model.threads, inputs=inputs)

    def steps(self, precision: str) -> str:
        """Return what takes the steps. In a bank, the base and one adapter are compared: all share their graphs."""
        model, bank = self._model, self._bank
        if model.provider != "cpu":
            return "graphs: GPUs have no kernel"
        adapted = bank.inputs.get(ADAPTED + "step", ()) if bank else ()
        try:
            model.kernel = kernel = StepKernel(self._folder, precision, model.threads, adapted)
        except ValueError as error:
            return f"graphs: {error}"
        probes: list[tuple[str | None, Any]] = [(None, read_probe(self._folder))]
        if bank:
            probes += [(name, bank.probe(name)) for name in bank.names[:1]]
        for name, probe in probes:
            ids, mask, before = forced_answers(probe, self._special)
            source = self._graphs.encode(ids, mask, bank.select([name] * len(ids)) if bank else None)
            answers = [
                each.logits(each.adopt(source), each.cache(len(ids)), before, copy=False)
                for each in (model, self._graphs)
            ]
            if problem := _problem(*answers):
                model.kernel = None
                return f"graphs: {problem}"
        return f"kernel ({kernel.instructions})"

    def encoder(self, precision: str) -> str:
        """Return what encodes. Answers are those of the steps that were chosen."""
        model = self._model
        if model.provider != "cpu" or self._bank:
            return "graph: banks and GPUs have no kernel"
        try:
            model.encoder = kernel = EncoderKernel(self._folder, precision, model.threads)
        except ValueError as error:
            return f"graph: {error}"
        ids, mask, before = forced_answers(read_probe(self._folder), self._special)
        sources = [model.adopt(each.encode(ids, mask)) for each in (model, self._graphs)]
        answers = [model.logits(source, model.cache(len(ids)), before) for source in sources]
        if problem := _problem(*answers):
            model.encoder = None
            return f"graph: {problem}"
        return f"kernel ({kernel.instructions})"


def _problem(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Return why a kernel with these logits is not chosen, or "" if they are near the graphs'."""
    apart = difference(ours, theirs)
    is_near = apart <= NEAR  # False for NaN
    return "" if is_near else f"the kernel's logits of the probe differ by {apart:.2f} of their standard deviation"


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


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the root mean square difference of logits, as a share of the standard deviation of `theirs`.

    Args:
        ours, theirs: Logits of the same tokens, float32 [b, n, vocabulary].
    """
    return float(np.sqrt(np.mean((ours - theirs) ** 2)) / (theirs.std() + 1e-9))

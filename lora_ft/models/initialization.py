"""Initial weights other than LoRA's own: EVA's, computed from rows, and PiSSA's and OLoRA's, subtracted from the base.

PiSSA and OLoRA change the base that the adapter trains on, so it differs from the published base. The initial adapter
is therefore kept beside the checkpoints, and a resumed run starts from it. The saved adapter holds what training added
(trained minus initial, at twice the rank), and applies to the published base.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_ft.core.errors import UsageError
from lora_ft.core.files import staged_folder
from lora_ft.core.tokenizer import IGNORED
from lora_ft.data.batching import Encoded, LengthSampler, collate
from lora_ft.models.adapters import load_adapter
from lora_ft.models.generation import own_generation
from lora_ft.runs.run import CONFIG

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from lora_ft.tasks.lora import Lora

INITIAL = "initial"
_BATCH, _BATCHES = 8, 16  # rows in a batch, and number of batches, that EVA reads
# Layers with the same input. The first name stands for all of them.
_ALIKE = (
    (r"SelfAttention\.[qkv]$", "SelfAttention.q"),
    (r"wi_[01]$", "wi_0"),
    (r".*EncDecAttention\.[kv]$", "encoded"),
)


def start_from_rows(adapted: PeftModel, rows: Sequence[Encoded], seed: int, device: str) -> None:
    """Initialize by EVA (arXiv 2410.07170): A holds a layer's main input components, ranks go where they explain most.

    PEFT's own search runs until its estimates converge: minutes on a CPU for FLAN-T5-small, and forever if batches hold
    too few tokens. Here, the components are computed once, from covariances.

    Args:
        adapted: Adapter created with init_lora_weights eva.
        rows: Rows of the training split.
        seed: Seed of the order of rows.
        device: Device to compute on.

    Raises:
        UsageError: A rank is larger than a layer, or larger than the rows can fill.
    """
    from peft import initialize_lora_eva_weights

    config = adapted.peft_config["default"]
    start = own_generation(adapted).special.start
    order = list(LengthSampler(rows, _BATCH, seed))[: _BATCH * _BATCHES]
    batches = [collate([rows[i] for i in order[at : at + _BATCH]], start) for at in range(0, len(order), _BATCH)]
    components = _components(adapted.to(device), batches, device, config.eva_config.rho)
    initialize_lora_eva_weights(adapted, eva_state_dict=components)
    config.init_lora_weights, config.eva_config = True, None


@torch.inference_mode()
def _components(adapted: PeftModel, batches: Sequence[dict[str, Tensor]], device: str, rho: float) -> dict[str, Tensor]:
    """Return [rank, width] of each layer: the components, over all layers, that explain the most of their variance.

    The sum of ranks stays the same. No rank exceeds its original value times rho (PEFT's eva_config).
    """
    layers = {name: module for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    found = _covariances(adapted, layers, batches, device)
    spectra = {key: torch.linalg.eigh(covariance) for key, covariance in found.items()}  # ascending
    shares: list[tuple[float, str]] = []
    for name, module in layers.items():
        values, wanted = spectra[_inputs_of(name)].eigenvalues, round(module.r["default"] * rho)
        full = int((values > values[-1] * 1e-6).sum())
        if wanted > full:
            raise UsageError(
                f"init_lora_weights eva looks for {wanted} components of the inputs of {name}, which have {full}",
                "a smaller lora.r, more or longer rows, or another init_lora_weights",
            )
        shares += [(float(share), name) for share in values.flip(0)[:wanted] / values.sum()]
    budget = sum(module.r["default"] for module in layers.values())
    ranks = Counter(name for _, name in sorted(shares, reverse=True)[:budget])
    return {name: spectra[_inputs_of(name)].eigenvectors.T.flip(0)[: ranks[name]].clone() for name in layers}


def _covariances(
    adapted: PeftModel, layers: dict[str, Any], batches: Sequence[dict[str, Tensor]], device: str
) -> dict[str, Tensor]:
    """Return [width, width] covariances of the layers' inputs, by the names of `_inputs_of`."""
    sums: dict[str, list[Any]] = {}
    seen: set[str] = set()
    masks: dict[str, Tensor] = {}

    def add(name: str, states: Tensor) -> None:
        key = _inputs_of(name)
        if key in seen:
            return
        seen.add(key)
        real = states[masks["decoder" if ".decoder." in key else "encoder"]].float()
        entry = sums.setdefault(key, [0, 0, 0])
        for i, value in enumerate((len(real), real.sum(0), real.T @ real)):
            entry[i] = entry[i] + value

    handles = [
        module.register_forward_pre_hook(lambda _, given, name=name: add(name, given[0]))
        for name, module in layers.items()
    ]
    was_training = adapted.training
    adapted.eval()
    try:
        with adapted.disable_adapter():
            for batch in batches:
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                masks |= {"encoder": batch["attention_mask"].bool(), "decoder": batch["labels"] != IGNORED}
                seen.clear()
                adapted(**batch)
    finally:
        for handle in handles:
            handle.remove()
        adapted.train(was_training)
    return {
        key: outer / count - torch.outer(total / count, total / count) for key, (count, total, outer) in sums.items()
    }


def _inputs_of(name: str) -> str:
    """Return a name for a layer's input, which layers with the same input share."""
    for pattern, shared in _ALIKE:
        name = re.sub(pattern, shared, name)
    return name


def keep_start(adapted: PeftModel, folder: Path) -> None:
    """Write the initial weights of a new adapter to `folder`, unless they are already there."""
    if not (folder / CONFIG).is_file():
        with staged_folder(folder, overwrite=True) as staging:
            adapted.save_pretrained(staging)


def load_start(model: PreTrainedModel, folder: Path, lora: Lora) -> PeftModel:
    """Return a base with the adapter that `keep_start` wrote, ready for training, as when that run began."""
    adapted = load_adapter(model, folder, trainable=True)
    if lora.moves_base:
        for module in adapted.modules():
            if hasattr(module, "lora_A"):  # as PEFT does at the start, to the same bits
                start = module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
                module.get_base_layer().weight.data -= start.data
    return adapted


def save_difference(adapted: PeftModel, folder: Path, start: Path) -> None:
    """Write what training added to the initial weights, as a LoRA adapter for the unchanged base."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*path_initial_model_for_weight_conversion")
        adapted.save_pretrained(folder, path_initial_model_for_weight_conversion=str(start))

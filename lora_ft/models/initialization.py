"""Initial weights of an adapter: by EVA from rows, or by PiSSA and OLoRA, which subtract them from the base.

PiSSA and OLoRA change the base that the adapter trains on, so it differs from the published base. The initial adapter
is therefore stored with the checkpoints, and a resumed run starts from it. The saved adapter is the difference between
trained and initial weights, at twice the rank, and fits the published base.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_ft.core.errors import UsageError
from lora_ft.core.files import staged_folder
from lora_ft.core.tokenizer import IGNORED
from lora_ft.data.batching import Encoded, LengthSampler, collate
from lora_ft.export.families import family_of
from lora_ft.models.adapters import load_adapter
from lora_ft.models.generation import model_generation
from lora_ft.runs.run import CONFIG

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from lora_ft.tasks.lora import Lora

INITIAL = "initial"
_BATCH, _BATCHES = 8, 16  # rows per batch and number of batches for EVA
_PREFIX = "base_model.model."  # peft's prefix of the base's layer names


def start_from_rows(adapted: PeftModel, rows: Sequence[Encoded], seed: int, device: str) -> None:
    """Initialize by EVA (arXiv 2410.07170): A holds the principal components of a layer's inputs.

    Layers whose components explain most of the variance get the most ranks. PEFT's own search runs until its estimates
    converge: minutes on a CPU for FLAN-T5-small, and forever if batches hold too few tokens. Here the components are
    computed once, from covariances.

    Args:
        adapted: Adapter created with init_lora_weights eva.
        rows: Rows of the training split.
        seed: Seed of the row order.
        device: Device to compute on.

    Raises:
        UsageError: A rank is larger than the number of independent components of a layer's inputs.
    """
    from peft import initialize_lora_eva_weights

    config = adapted.peft_config["default"]
    start = model_generation(adapted).special.start
    order = list(LengthSampler(rows, _BATCH, seed))[: _BATCH * _BATCHES]
    batches = [collate([rows[i] for i in order[at : at + _BATCH]], start) for at in range(0, len(order), _BATCH)]
    components = _components(adapted.to(device), batches, device, config.eva_config.rho)
    initialize_lora_eva_weights(adapted, eva_state_dict=components)
    config.init_lora_weights, config.eva_config = True, None


@torch.inference_mode()
def _components(adapted: PeftModel, batches: Sequence[dict[str, Tensor]], device: str, rho: float) -> dict[str, Tensor]:
    """Return the components [rank, width] of each layer that explain the most variance, chosen over all layers.

    The sum of ranks stays the same. No rank exceeds its original value times rho (PEFT's eva_config).
    """
    layers = {name: module for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    readers = _first_readers(adapted, layers)
    covariances = _covariances(adapted, layers, readers, batches, device)
    spectra = {name: torch.linalg.eigh(covariance) for name, covariance in covariances.items()}  # ascending
    shares: list[tuple[float, str]] = []
    for name, module in layers.items():
        values, count = spectra[readers[name]].eigenvalues, round(module.r["default"] * rho)
        available = int((values > values[-1] * 1e-6).sum())
        if count > available:
            raise UsageError(
                f"init_lora_weights eva requires {count} components of the inputs of {name}, which have {available}",
                "lower lora.r, add more or longer rows, or use another init_lora_weights",
            )
        shares += [(float(share), name) for share in values.flip(0)[:count] / values.sum()]
    budget = sum(module.r["default"] for module in layers.values())
    ranks = Counter(name for _, name in sorted(shares, reverse=True)[:budget])
    return {name: spectra[readers[name]].eigenvectors.T.flip(0)[: ranks[name]].clone() for name in layers}


def _covariances(
    adapted: PeftModel,
    layers: Mapping[str, Any],
    readers: Mapping[str, str],
    batches: Sequence[dict[str, Tensor]],
    device: str,
) -> dict[str, Tensor]:
    """Return covariances [width, width] of the layers' inputs, by the names that `_first_readers` returns."""
    kind_of = family_of(adapted.get_base_model().config.model_type).layer_kind
    sums: dict[str, list[Any]] = {}
    added: set[str] = set()
    masks: dict[str, Tensor] = {}

    def add(reader: str, states: Tensor) -> None:
        if reader in added:
            return
        added.add(reader)
        real = states[masks["encoder" if kind_of(reader) == "encoder" else "decoder"]].float()
        entry = sums.setdefault(reader, [0, 0, 0])
        for i, value in enumerate((len(real), real.sum(0), real.T @ real)):
            entry[i] = entry[i] + value

    handles = [
        module.register_forward_pre_hook(lambda _, inputs, reader=readers[name]: add(reader, inputs[0]))
        for name, module in layers.items()
    ]
    was_training = adapted.training
    adapted.eval()
    try:
        with adapted.disable_adapter():
            for batch in batches:
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                masks |= {"encoder": batch["attention_mask"].bool(), "decoder": batch["labels"] != IGNORED}
                added.clear()
                adapted(**batch)
    finally:
        for handle in handles:
            handle.remove()
        adapted.train(was_training)
    return {
        key: outer / count - torch.outer(total / count, total / count) for key, (count, total, outer) in sums.items()
    }


def _first_readers(adapted: PeftModel, layers: Iterable[str]) -> dict[str, str]:
    """Return the layer that stands for each layer's input: the first, by the base's name, of those with that input."""
    config = adapted.get_base_model().config
    family = family_of(config.model_type)
    architecture = family.read_architecture(config.to_dict(), Path(config.name_or_path))
    first = {layer: group[0] for _, group in family.shared_inputs(architecture) for layer in group}
    names = {name: name.removeprefix(_PREFIX) for name in layers}
    return {name: first.get(layer, layer) for name, layer in names.items()}


def keep_start(adapted: PeftModel, folder: Path) -> None:
    """Write the initial weights of a new adapter to `folder`, unless they exist."""
    if not (folder / CONFIG).is_file():
        with staged_folder(folder, overwrite=True) as staging:
            adapted.save_pretrained(staging)


def load_start(model: PreTrainedModel, folder: Path, lora: Lora) -> PeftModel:
    """Return a base with the adapter that `keep_start` wrote, in the state in which its training began."""
    adapted = load_adapter(model, folder, trainable=True)
    if lora.moves_base:
        for module in adapted.modules():
            if hasattr(module, "lora_A"):  # the same operations as PEFT's at the start, so the bits are equal
                start = module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
                module.get_base_layer().weight.data -= start.data
    return adapted


def save_difference(adapted: PeftModel, folder: Path, start: Path) -> None:
    """Write the difference between trained and initial weights as a LoRA adapter for the unchanged base."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*path_initial_model_for_weight_conversion")
        adapted.save_pretrained(folder, path_initial_model_for_weight_conversion=str(start))

"""LoRA adapters in peft's own format: put on a base, counted, loaded, and checked against the base they are put on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import LoraFtError, UsageError, first_line
from export.files import read_json, write_json
from lora_ft.task import Lora

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from lora_ft.bases import Base

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def add_adapter(model: PreTrainedModel, lora: Lora, base: Base | None = None) -> PeftModel:
    """A new adapter on a base, which is frozen.

    Raises:
        UsageError: `target_modules` names a layer that the base has not.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    _check_targets(model, lora)
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
    )
    adapted = get_peft_model(model, config)
    # While training, peft looks the base's config up by this name at every save: it must be found without the network.
    adapted.peft_config["default"].base_model_name_or_path = str(base.folder) if base else None
    return adapted


def _check_targets(model: PreTrainedModel, lora: Lora) -> None:
    """peft itself is content when one of several names fits, and trains less than was asked for."""
    if isinstance(lora.target_modules, str):
        return
    from torch.nn import Linear

    layers = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    for target in lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            known = sorted({name.rsplit(".", 1)[-1] for name in layers})
            raise UsageError(
                f"lora.target_modules: the base has no linear layer '{target}'", f"it has {', '.join(known)}"
            )


def name_base(folder: Path, base: Base) -> None:
    """Write the base's own name, by which others can load it, into a saved adapter."""
    write_json(folder / CONFIG, adapter_config(folder) | {"base_model_name_or_path": base.name})


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """A base with the adapter of `folder` on it, in evaluation mode.

    Raises:
        UsageError: no adapter there, or not of safetensors.
        LoraFtError: the adapter was made for a base of other dimensions.
    """
    from peft import PeftModel

    check_fits(model, folder)
    return PeftModel.from_pretrained(model, folder).eval()


def check_fits(model: PreTrainedModel, folder: Path) -> None:
    """Raise LoraFtError unless every weight of the adapter fits the layer it is for."""
    from safetensors import SafetensorError, safe_open

    adapter_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise UsageError(f"{folder} has no {WEIGHTS}", "adapters are read from safetensors only")
    layers = dict(model.named_modules())
    try:
        with safe_open(folder / WEIGHTS, "np") as weights:
            shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise LoraFtError(f"{folder / WEIGHTS} is damaged ({first_line(error)})", "train the adapter again") from error
    for name, shape in shapes.items():
        layer, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
        if not rest:
            continue
        side, module = rest[0], layers.get(layer)
        expected = None if module is None else module.in_features if side == "A" else module.out_features
        found = shape[1] if side == "A" else shape[0]
        if expected != found:
            has = "which this base has not" if expected is None else f"which is {expected} wide in this base"
            raise LoraFtError(
                f"the adapter {folder} is for another base: it has width {found} at {layer}, {has}",
                f"give the base it was trained on ({adapter_config(folder).get('base_model_name_or_path')})",
            )


def adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of an adapter's folder."""
    path = folder / CONFIG
    if not path.is_file():
        raise UsageError(f"{folder} is not an adapter: it has no {CONFIG}", "give a run, or a folder saved by peft")
    return read_json(path)


def count_parameters(config: dict[str, Any], lora: Lora) -> tuple[int, int]:
    """(trainable, all) parameters of an adapter on a base of this config.json, without loading any weight."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    from lora_ft.bases import quiet_transformers

    with torch.device("meta"), quiet_transformers():
        model = add_adapter(AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**config)), lora)
    untied = config.get("tie_word_embeddings", True) is False
    tied_head = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    head = config["vocab_size"] * config["d_model"] if untied and tied_head else 0  # transformers 5 ties on meta
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters()) + head

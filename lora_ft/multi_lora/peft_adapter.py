"""Describe an adapter created by peft, without its base, and write its weights in peft's format."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lora_ft.models.adapters import name_base
from lora_ft.models.bases import Base
from lora_ft.runs.run import WEIGHTS
from lora_ft.training.prepared_data import PreparedData
from lora_ft.training.weights import fresh_adapter

if TYPE_CHECKING:
    from peft import LoraConfig

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """Configuration, shapes and scales of an adapter, without its weights.

    Attributes:
        config: Configuration of the adapter, as a peft object.
        shapes: (out, in) of each weight, by peft's name in files, in peft's order.
        scales: Scale of each adapted layer, by its name.
    """

    config: LoraConfig
    shapes: dict[str, tuple[int, int]]
    scales: dict[str, float]

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(rows * columns for rows, columns in self.shapes.values())

    def rank(self, layer: str) -> int:
        """Return the rank of a layer, or 0 if it is not adapted."""
        return self.shapes.get(weight_name(layer, "A"), (0, 0))[0]

    def write(self, weights: Mapping[str, Tensor], folder: Path, base: Base) -> None:
        """Write weights and config into `folder`, as peft would, with the base's own name."""
        from safetensors.torch import save_file

        folder.mkdir(exist_ok=True)
        save_file({name: weights[name] for name in self.shapes}, folder / WEIGHTS, metadata={"format": "pt"})
        config = copy(self.config)
        config.inference_mode = True
        config.save_pretrained(str(folder))
        name_base(folder, base)


def weight_name(layer: str, side: str) -> str:
    """Return peft's name of a layer's "A" or "B" in files."""
    return f"{_PREFIX}{layer}.lora_{side}.weight"


def make_adapter(model: Any, data: PreparedData, device: str) -> tuple[Adapter, dict[str, Tensor]]:
    """Return a task's adapter and its initial weights, equal to those of training alone. The model is left unchanged.

    Args:
        model: Base model without adapters.
        data: Task, base, tokenizer, and rows for the initial weights of EVA.
        device: Device on which EVA runs.
    """
    from peft import get_peft_model_state_dict

    adapted = fresh_adapter(model, data, device)
    weights = {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(adapted).items()}
    scales = {
        name.removeprefix(_PREFIX): float(module.scaling["default"])
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    }
    config = adapted.peft_config["default"]
    adapted.unload()
    return Adapter(config, {name: tuple(weight.shape) for name, weight in weights.items()}, scales), weights

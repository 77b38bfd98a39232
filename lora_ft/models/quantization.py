"""Frozen bases in 4 or 8 bits, by bitsandbytes on CUDA, to train an adapter on."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ft.core.errors import UsageError
from lora_ft.models.bases import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# This logger warns at every 8-bit product that its input is cast: 39,000 lines in 40 steps.
_PRODUCT_LOGGER = "bitsandbytes.autograd._functions"


def require_quantization(kind: str) -> None:
    """Raise UsageError unless this machine can quantize a base to `kind` ("4bit" or "8bit")."""
    import torch

    remedy = "train on a machine with one, or leave out lora.quantization"
    if not torch.cuda.is_available():
        raise UsageError(f"lora.quantization {kind} needs an NVIDIA GPU, but this machine has none", remedy)
    if find_spec("bitsandbytes") is None:
        raise UsageError(
            f"lora.quantization {kind} needs bitsandbytes, which is not installed",
            "pip install 'lora-ft[quantization]'",
        )


def load_quantized(folder: Path, kind: str, *, dropout: float | None = None, device: int = 0) -> PreTrainedModel:
    """Return a checkpoint's model with quantized linear layers, ready for an adapter. Other tensors stay float32.

    Args:
        folder: transformers checkpoint.
        kind: "4bit" (NF4 with quantized scales: arXiv 2305.14314) or "8bit" (arXiv 2208.07339).
        dropout: Dropout rate instead of the checkpoint's own.
        device: Index of the GPU.

    Raises:
        UsageError: This machine cannot quantize a base to `kind`.
    """
    require_quantization(kind)
    from peft import prepare_model_for_kbit_training

    logging.getLogger(_PRODUCT_LOGGER).setLevel(logging.ERROR)
    model = load_model(folder, dropout=dropout, quantization_config=_config(kind), device_map={"": device})
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # `build_trainer` sets it


def _config(kind: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32,  # no fp16 for T5
    )

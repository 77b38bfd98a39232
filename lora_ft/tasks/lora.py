"""Section `lora` of a task: the adapter, by peft's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lora_ft.tasks.fields import Dropout, NotNegative, Real, Section, Whole

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"r": 8, "lora_alpha": 16, "target_modules": "q,v"},
    "default": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "large": {"r": 64, "lora_alpha": 64, "target_modules": "all-linear"},
}

Rank = Annotated[Whole, Field(ge=1, le=10_000)]
Scale = Annotated[Whole, Field(ge=1, le=1_000_000)]
Pattern = Annotated[str, Field(min_length=1, max_length=500)]
"""The end of a layer's name, or a regular expression for it; see `lora_ft.core.patterns`."""


class Lora(Section):
    """The adapter, by peft's names. A preset supplies missing values."""

    preset: Literal["tiny", "default", "large"] = "default"
    """tiny: r 8 on q,v. default: r 16 on all linear layers. large: r 64 on all linear layers."""
    r: Rank
    """Rank of the adapter's matrices."""
    lora_alpha: Scale
    """Scale of the adapter: its output is multiplied by lora_alpha / r."""
    lora_dropout: Dropout = 0.0
    """Dropout rate on the adapter's input."""
    target_modules: str | list[str]
    """"q,v", "all-linear" (every linear layer except the head), "decoder" (its linear layers), or a list of names."""
    use_dora: bool = False
    """Train magnitude and direction of each weight separately (DoRA, arXiv 2402.09353). Slower, sometimes better."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead of lora_alpha / r (rsLoRA, arXiv 2312.03732). For large r."""
    init_lora_weights: bool | str = True
    """Initialization: true, false, gaussian, orthogonal, pissa, pissa_niter_N, olora, or eva (uses training rows)."""
    rank_pattern: dict[Pattern, Rank] = {}
    """Rank of single layers, by the end of their name or a regular expression, instead of `r`."""
    alpha_pattern: dict[Pattern, Scale] = {}
    """Scale of single layers, likewise, instead of `lora_alpha`."""
    trainable_token_indices: list[NotNegative] = []
    """Ids of tokens whose rows of the embedding (and of an untied head) are trained too."""
    new_tokens: list[Annotated[str, Field(min_length=1)]] = []
    """Tokens to add to the vocabulary and train likewise, in unused rows of the base's embedding (FLAN-T5 has 28)."""
    start_from: str | None = None
    """Adapter to start from, with a new optimizer: a run, or a folder saved by peft. Its ranks and layers are kept."""
    loraplus_lr_ratio: Annotated[Real, Field(ge=1, le=1e6)] | None = None
    """Ratio of the learning rates of B and A (LoRA+, arXiv 2402.12354), e.g. 16."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Storage of the frozen base during training, by bitsandbytes on CUDA. Merging uses the base as it is."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        preset = values.get("preset", "default")
        is_known = isinstance(preset, str) and preset in PRESETS
        return {
            **PRESETS[preset if is_known else "default"],
            **values,
        }  # an unknown preset is reported by its own field

    @field_validator("target_modules")
    @classmethod
    def _as_list(cls, value: str | list[str]) -> str | list[str]:
        if value in ("all-linear", "decoder"):
            return value
        names = [name.strip() for name in (value.split(",") if isinstance(value, str) else value)]
        if not names or not all(names):
            raise ValueError("name at least one layer, e.g. q,v or all-linear")
        return names

    @field_validator("init_lora_weights")
    @classmethod
    def _known_start(cls, value: bool | str) -> bool | str:
        names = ("gaussian", "orthogonal", "pissa", "olora", "eva")
        if isinstance(value, str) and value not in names and not re.fullmatch(r"pissa_niter_[1-9]\d{0,2}", value):
            raise ValueError(f"unknown initialization; use true, false, {', '.join(names)} or pissa_niter_N")
        return value

    @model_validator(mode="after")
    def _go_together(self) -> Lora:
        ranks = [self.r, *self.rank_pattern.values()]
        if self.init_lora_weights == "orthogonal" and any(rank % 2 for rank in ranks):
            raise ValueError("init_lora_weights orthogonal requires even ranks; change r or rank_pattern")
        if self.quantization and (self.moves_base or self.init_lora_weights == "orthogonal"):
            raise ValueError(
                f"init_lora_weights {self.init_lora_weights} requires a base without quantization; remove one"
            )
        if self.moves_base and (self.use_dora or self.new_tokens or self.trainable_token_indices):
            raise ValueError(
                f"init_lora_weights {self.init_lora_weights} is saved as a difference, which DoRA and trained tokens "
                "do not support; use another init_lora_weights"
            )
        if self.moves_base and self.use_rslora and (self.rank_pattern or self.alpha_pattern):
            raise ValueError(
                f"peft cannot save init_lora_weights {self.init_lora_weights} together with use_rslora and patterns; "
                "remove one of the three"
            )
        return self

    @property
    def moves_base(self) -> bool:
        """True if the initial adapter is subtracted from the base's weights, so that their sum is the base."""
        return isinstance(self.init_lora_weights, str) and self.init_lora_weights.startswith(("pissa", "olora"))

    @property
    def starts_elsewhere(self) -> bool:
        """True if the initial adapter is derived from the base's weights or from rows, and is kept for resuming."""
        return self.moves_base or self.init_lora_weights == "eva"

    @property
    def keeps_start(self) -> bool:
        """True if a run keeps its initial adapter, for resuming."""
        return self.starts_elsewhere or self.start_from is not None

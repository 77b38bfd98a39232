"""LoRA adapters in peft's own format: put on a base, counted, loaded, and checked against the base they are put on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import LoraFtError, UsageError, first_line
from export.files import read_json, write_json
from lora_ft.bases import ADAPTER_CONFIG, quiet_transformers
from lora_ft.checkpoint import is_untied, tell_ties
from lora_ft.lora import Lora

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, T5ForConditionalGeneration

    from lora_ft.bases import Base

WEIGHTS = "adapter_model.safetensors"
CONFIG = ADAPTER_CONFIG


def add_adapter(
    model: PreTrainedModel, lora: Lora, base: Base | None = None, new_tokens: Sequence[int] = ()
) -> PeftModel:
    """A new adapter on a base, which is frozen. With init_lora_weights eva, `initial.start_from_rows` comes next.

    Args:
        model: the base.
        lora: what to put on it.
        base: where it lies.
        new_tokens: ids of `lora.new_tokens`.

    Raises:
        UsageError: `target_modules`, a pattern or a token names what the base has not.
    """
    from peft import EvaConfig, LoraConfig, TaskType, get_peft_model

    _check_targets(model, lora)
    _check_tokens(model, lora)
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        init_lora_weights=lora.init_lora_weights,
        eva_config=EvaConfig() if lora.init_lora_weights == "eva" else None,
        rank_pattern=lora.rank_pattern,
        alpha_pattern=lora.alpha_pattern,
        trainable_token_indices=_trained_tokens(model, [*lora.trainable_token_indices, *new_tokens]),
    )
    with quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lora with eva initialization used")  # advice for models of many GB
        adapted = get_peft_model(model, config)
    if lora.moves_base:  # what was saved later would otherwise be taken out of the base once more when it is loaded
        adapted.peft_config["default"].init_lora_weights = True
    _share_embedding(model, config)
    # While training, peft looks the base's config up by this name at every save: it must be found without the network.
    adapted.peft_config["default"].base_model_name_or_path = str(base.folder) if base else None
    return adapted


def _check_targets(model: PreTrainedModel, lora: Lora) -> None:
    """peft itself is content when one of several names fits, and trains less than was asked for."""
    from torch.nn import Linear

    layers = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    known = sorted({name.rsplit(".", 1)[-1] for name in layers})
    for target in [] if isinstance(lora.target_modules, str) else lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise UsageError(
                f"lora.target_modules: the base has no linear layer '{target}'", f"it has {', '.join(known)}"
            )
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(lora, key):
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in layers):  # as peft looks them up
                raise UsageError(f"lora.{key}: the base has no linear layer '{pattern}'", f"it has {', '.join(known)}")


def _check_tokens(model: PreTrainedModel, lora: Lora) -> None:
    rows = model.config.vocab_size
    beyond = [index for index in lora.trainable_token_indices if index >= rows]
    if beyond:
        raise UsageError(f"lora.trainable_token_indices: the base has no row {beyond[0]}", f"it has {rows:,} rows")


def _trained_tokens(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, list[int]] | None:
    """peft's trainable_token_indices: rows of the embedding, and of the head where that has its own."""
    if not ids:
        return None
    tell_ties(model)
    return {name: sorted(set(ids)) for name in ("shared", *(["lm_head"] if is_untied(model) else []))}


def _share_embedding(model: PreTrainedModel, config: LoraConfig | None = None) -> None:
    """Let encoder and decoder look tokens up where trained ones are: peft puts them on `shared` alone."""
    if config is None or config.trainable_token_indices:
        model.set_input_embeddings(model.shared)


def name_base(folder: Path, base: Base) -> None:
    """Write the base's own name, by which others can load it, into a saved adapter."""
    write_json(folder / CONFIG, adapter_config(folder) | {"base_model_name_or_path": base.name})


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool = False, name: str = "default") -> PeftModel:
    """A base with the adapter of `folder` on it, under a name, in evaluation mode unless it is to be trained.

    Raises:
        UsageError: no adapter there, or not of safetensors.
        LoraFtError: the adapter was made for a base of other dimensions.
    """
    from peft import PeftModel

    check_fits(model, folder)
    if adapter_config(folder).get("trainable_token_indices"):
        tell_ties(model)
    with quiet_transformers():
        adapted = PeftModel.from_pretrained(model, folder, name, is_trainable=trainable)
    _share_embedding(model, adapted.peft_config[name])
    return adapted.train(trainable)


def merge_adapter(adapted: PeftModel) -> T5ForConditionalGeneration:
    """The base with the adapter in its weights, in evaluation mode."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")  # FLAN's never were
        model = adapted.merge_and_unload(safe_merge=True).eval()
    _share_embedding(model)
    return model


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
        layer, of_layer, rest = name.removeprefix("base_model.model.").partition(".lora_")
        if of_layer:
            module = layers.get(layer)
            side = "in" if rest.startswith("A") else "out"  # B and DoRA's magnitudes
            expected = None if module is None else getattr(module, f"{side}_features")
            found = shape[1] if side == "in" else shape[0]
        else:  # rows of trained tokens
            layer, expected, found = layer.partition(".token_adapter")[0], model.config.d_model, shape[1]
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


def count_parameters(config: dict[str, Any], lora: Lora | None) -> tuple[int, int]:
    """(trainable, all) parameters of an adapter on a base of this config.json, without loading any weight.

    EVA moves ranks between layers when it has seen the rows; its adapter is counted as if it did not. Without an
    adapter all are trained.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    with torch.device("meta"), quiet_transformers():
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**config))
        if config.get("tie_word_embeddings", True) is False:  # transformers 5 ties the head here
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        if lora is not None:
            # a start needs weights to be worked out from; new tokens take the last rows, whichever
            plain = lora.model_copy(update={"init_lora_weights": True})
            last = config["vocab_size"] - len(lora.new_tokens)
            model = add_adapter(model, plain, new_tokens=range(last, config["vocab_size"]))
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(count for count, trained in counts if trained), sum(count for count, _ in counts)

"""LoRA adapters in PEFT's format: add one to a base, load, merge, check it against the base, count parameters."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ft.core.errors import BaseMismatchError, LoraFtError, UsageError, first_line
from lora_ft.core.files import write_json
from lora_ft.core.patterns import check_patterns
from lora_ft.export.checkpoint.tensor_checks import listed
from lora_ft.export.families import FAMILIES, family_of
from lora_ft.models.adapter_files import adapter_config, describe, lora_config, patterns_of, require_tensors
from lora_ft.models.bases import quiet_transformers
from lora_ft.models.checkpoints import is_scaled, is_untied, mark_untied
from lora_ft.runs.run import CONFIG
from lora_ft.tasks.lora import Lora

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, T5ForConditionalGeneration

    from lora_ft.models.bases import Base


_TABLES = tuple(name for family in FAMILIES for name in (family.EMBEDDING, *family.COPIES))


def add_adapter(
    model: PreTrainedModel, lora: Lora, base: Base | None = None, new_tokens: Sequence[int] = ()
) -> PeftModel:
    """Return the frozen base with a new adapter.

    With init_lora_weights eva, call `initialization.start_from_rows` next.

    Args:
        model: Base model.
        lora: Settings of the adapter.
        base: Name and folder of the base.
        new_tokens: Token ids of `lora.new_tokens`.

    Raises:
        UsageError: The base has no layer of `target_modules` or of a pattern, or no row for a token.
    """
    from peft import EvaConfig, LoraConfig, TaskType, get_peft_model

    _check_targets(model, lora)
    _check_tokens(model, lora)
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=_decoder_layers(model) if lora.target_modules == "decoder" else lora.target_modules,
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
    if lora.moves_base:  # otherwise, loading the saved adapter would subtract its initial weights a second time
        adapted.peft_config["default"].init_lora_weights = True
    _share_embedding(model, config)
    # During training, PEFT looks up the base's config by this name at every save. It must work without the network.
    adapted.peft_config["default"].base_model_name_or_path = str(base.folder) if base else None
    return adapted


def _check_targets(model: PreTrainedModel, lora: Lora) -> None:
    """Raise UsageError for layers that the base lacks. PEFT silently skips them if any other name matches."""
    from torch.nn import Linear

    layers = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    layer_types = sorted({name.rsplit(".", 1)[-1] for name in layers})
    for target in [] if isinstance(lora.target_modules, str) else lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise UsageError(
                f"lora.target_modules: the base has no linear layer '{target}'", f"use {', '.join(layer_types)}"
            )
    for key in ("rank_pattern", "alpha_pattern"):
        check_patterns(f"lora.{key}", getattr(lora, key), layers)
        for pattern in getattr(lora, key):
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in layers):  # PEFT's own lookup
                raise UsageError(
                    f"lora.{key}: the base has no linear layer '{pattern}'", f"use {', '.join(layer_types)}"
                )


def _decoder_layers(model: PreTrainedModel) -> str:
    """Return peft's pattern for the linear layers of the decoder."""
    from torch.nn import Linear

    names = {
        name.rsplit(".", 1)[-1] for name, module in model.get_decoder().named_modules() if isinstance(module, Linear)
    }
    return rf"decoder\..*\.({'|'.join(sorted(names))})"


def _check_tokens(model: PreTrainedModel, lora: Lora) -> None:
    rows = model.config.vocab_size
    beyond = [index for index in lora.trainable_token_indices if index >= rows]
    if beyond:
        raise UsageError(
            f"lora.trainable_token_indices: the base has no row {beyond[0]}", f"use indices below {rows:,}"
        )


def _trained_tokens(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, list[int]] | None:
    """Return PEFT's trainable_token_indices: rows of the embedding, and of the head if it has its own weights."""
    if not ids:
        return None
    mark_untied(model)
    family = family_of(model.config.model_type)
    return {name: sorted(set(ids)) for name in (family.EMBEDDING, *([family.HEAD] if is_untied(model) else []))}


def _share_embedding(model: PreTrainedModel, config: LoraConfig | None = None) -> None:
    """Make encoder and decoder use the trained token rows, which PEFT adds to `shared` only."""
    if config is None or config.trainable_token_indices:
        model.set_input_embeddings(model.shared)


def name_base(folder: Path, base: Base) -> None:
    """Write the base's public name into a saved adapter's config, so that PEFT can load the base elsewhere."""
    write_json(folder / CONFIG, adapter_config(folder) | {"base_model_name_or_path": base.name})


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool = False, name: str = "default") -> PeftModel:
    """Return a base with the adapter of `folder`, in evaluation mode unless `trainable` is set.

    Raises:
        UsageError: There is no adapter, it is not in safetensors, or it cannot be merged into a T5.
        LoraFtError: The adapter was trained on another base, or its tensors do not match its config.
    """
    from peft import PeftModelForSeq2SeqLM

    config = _checked_config(model, folder)
    config.inference_mode = not trainable
    mark_untied(model)
    if _adapts_head(model, config) and not is_untied(model):  # merging it would change the embedding too
        model.lm_head.weight = type(model.lm_head.weight)(model.lm_head.weight.detach().clone())
    with _peft_errors(folder):
        adapted = PeftModelForSeq2SeqLM(model, config, adapter_name=name)
    _load_tensors(adapted, folder, name, trainable=trainable)
    _share_embedding(model, adapted.peft_config[name])
    return adapted.train(trainable)


def load_another(adapted: PeftModel, folder: Path, name: str) -> None:
    """Load a further adapter onto a base that already has one.

    Raises:
        UsageError, LoraFtError: As for `load_adapter`.
    """
    config = _checked_config(adapted.get_base_model(), folder)
    config.inference_mode = True
    with _peft_errors(folder):
        adapted.add_adapter(name, config)
    _load_tensors(adapted, folder, name, trainable=False)


def load_tensors(adapted: PeftModel, folder: Path, *, name: str = "default") -> None:
    """Replace the tensors of a trainable adapter with those of `folder`.

    Raises:
        UsageError, LoraFtError: The folder's tensors are not exactly those of the adapter.
    """
    _load_tensors(adapted, folder, name, trainable=True)


def check_tensors(adapted: PeftModel, folder: Path, *, name: str = "default") -> None:
    """Raise UsageError or LoraFtError unless names and shapes in `folder` match an adapter on a base.

    The model needs no weights (see `meta_model`).
    """
    from peft import get_peft_model_state_dict

    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter_state = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
        # PEFT also saves the base's embedding and head if the head is adapted or the vocabulary was resized.
        full_state = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=True)
    shapes = {key: tuple(tensor.shape) for key, tensor in full_state.items()}
    require_tensors(folder, describe(folder), shapes, optional=full_state.keys() - adapter_state.keys())


def _load_tensors(adapted: PeftModel, folder: Path, name: str, *, trainable: bool) -> None:
    check_tensors(adapted, folder, name=name)
    with _peft_errors(folder):
        result = adapted.load_adapter(str(folder), name, is_trainable=trainable)
    if unloaded := [*result.missing_keys, *result.unexpected_keys]:
        raise LoraFtError(f"peft did not load {listed(unloaded)} of {folder}", "save the adapter again with this peft")


@contextlib.contextmanager
def _peft_errors(folder: Path) -> Iterator[None]:
    """Convert PEFT's exceptions into one error that names the adapter."""
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about keys, ties and devices, which this module checks itself
            yield
    except LoraFtError:
        raise
    except Exception as error:  # PEFT raises many kinds
        raise LoraFtError(
            f"peft cannot load the adapter {folder} on this base ({first_line(error)})",
            "name the base it was trained on, or train it again",
        ) from error


def merge_adapter(adapted: PeftModel) -> T5ForConditionalGeneration:
    """Return the base with the adapter merged into its weights, in evaluation mode.

    Raises:
        LoraFtError: The merged weights are not finite, because the adapter's scale is too large.
    """
    scaled = is_scaled(adapted.get_base_model())  # before PEFT changes the ties in the config
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")  # FLAN's never were tied
        try:
            model = adapted.merge_and_unload(safe_merge=True).eval()
        except ValueError as error:
            raise LoraFtError(
                f"the adapter cannot be merged ({first_line(error)})",
                "correct lora_alpha and alpha_pattern in its config",
            ) from error
    _share_embedding(model)
    if is_untied(model) and scaled and model.config.model_type != "umt5":  # umt5's config cannot express it
        # An adapted head of a tied base: transformers 4 scales only tied heads, so the factor moves into the weights.
        model.lm_head.weight.data *= model.config.d_model**-0.5
        model.config.tie_word_embeddings = model.config.scale_decoder_outputs = False
    return model


def check_fits(model: PreTrainedModel, folder: Path) -> None:
    """Check that an adapter can be loaded on a base, which stays unchanged.

    Raises:
        UsageError: The adapter is not LoRA on linear layers.
        LoraFtError: The adapter was trained on a base of other dimensions.
    """
    _checked_config(model, folder)


def _checked_config(model: PreTrainedModel, folder: Path) -> LoraConfig:
    """Return the config of an adapter after checking that it fits a base."""
    config, tensors = lora_config(folder), describe(folder)
    layers = _layers(model)
    for key, patterns in patterns_of(config):
        check_patterns(f"{folder / CONFIG}: {key}", patterns, layers)
    _check_modules(layers, config, folder)
    for name, (_, shape) in tensors.items():
        layer, separator, matrix = name.removeprefix("base_model.model.").partition(".lora_")
        if not separator or len(shape) == 0 or not isinstance(layers.get(layer), _linear()):
            if separator and layer not in layers:
                raise _other_base(folder, f"this base has no layer {layer}")
            continue
        side = "in" if matrix.startswith("A") else "out"  # B, and DoRA's magnitudes
        expected, width = getattr(layers[layer], f"{side}_features"), shape[-1] if side == "in" else shape[0]
        if expected != width:
            raise _other_base(folder, f"{layer} has width {width} in the adapter and {expected} in this base")
    rows = model.config.vocab_size
    tokens = config.trainable_token_indices or []
    indices = [i for each in tokens.values() for i in each] if isinstance(tokens, dict) else list(tokens)
    if beyond := [index for index in indices if not (type(index) is int and 0 <= index < rows)]:
        raise _other_base(folder, f"it trains token {beyond[0]}, but this base has only {rows:,} rows")
    if indices:
        _check_trained_tables(model, tokens, folder)
    return config


def _check_trained_tables(model: PreTrainedModel, tokens: dict[str, list[int]] | list[int], folder: Path) -> None:
    """Raise UsageError if trained tokens are not in the tables that a merged T5 has, see `_trained_tokens`.

    PEFT trains rows of encoder.embed_tokens, which T5 shares with the decoder, as if it were a table of its own, and
    rows of an untied head as if it were the embedding.
    """
    trained = set(tokens) if isinstance(tokens, dict) else {family_of(model.config.model_type).EMBEDDING}
    expected = set(_trained_tokens(model, [0]) or ())
    if trained != expected:
        raise UsageError(
            f"{folder} trains tokens of {listed(sorted(trained))}, but those of {listed(sorted(expected))} belong "
            "together in this base",
            f"set trainable_token_indices to {{{', '.join(f'{name!r}: [...]' for name in sorted(expected))}}}",
        )


def _layers(model: PreTrainedModel) -> dict[str, Any]:
    """Return the modules of a base by name, without the wrappers and layers that PEFT added."""
    modules: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):  # transformers 4 shares embed_tokens
        if not any(part in ("base_layer", "original_module") or part.startswith("lora_") for part in name.split(".")):
            modules[name] = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    return modules


def _check_modules(layers: Mapping[str, Any], config: LoraConfig, folder: Path) -> None:
    """Raise UsageError if an adapter covers more than linear layers, or trains a whole embedding."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from torch.nn import Embedding

    if config.target_modules != "all-linear" and config.target_modules is not None:
        try:
            targets = [name for name in layers if check_target_module_exists(config, name)]
        except Exception as error:  # PEFT raises many kinds when keys of a config exclude each other
            raise LoraFtError(f"peft cannot apply {folder / CONFIG} ({first_line(error)})", "copy it again") from error
        for name in targets:
            if not isinstance(layers[name], _linear()):
                raise UsageError(
                    f"{folder} has LoRA on {name} (got {type(layers[name]).__name__}, supported: linear layers)",
                    "train an adapter with target_modules of linear layers, e.g. q,v",
                )
    for key in config.modules_to_save or ():
        for name in layers:
            # PEFT puts a trained copy under one name, but T5's encoder and decoder look up tokens under others.
            tables = [layers.get(table) for table in _TABLES if table == name or table.startswith(f"{name}.")]
            if any(isinstance(table, Embedding) for table in tables) and re.match(rf"(^|.*\.){key}$", name):
                raise UsageError(
                    f"{folder} trains the whole embedding (modules_to_save {key!r}), which is not supported",
                    "train some of its rows with trainable_token_indices instead",
                )


def _adapts_head(model: PreTrainedModel, config: LoraConfig) -> bool:
    from peft.tuners.tuners_utils import check_target_module_exists

    targets = config.target_modules
    head = family_of(model.config.model_type).HEAD
    return targets not in (None, "all-linear") and bool(check_target_module_exists(config, head))


def _linear() -> type[Any]:
    from torch.nn import Linear

    return Linear


def _other_base(folder: Path, reason: str) -> BaseMismatchError:
    trained_on = adapter_config(folder).get("base_model_name_or_path")
    return BaseMismatchError(
        f"the adapter {folder} is for another base: {reason}", f"pass the base it was trained on ({trained_on})"
    )


def count_parameters(config: dict[str, Any], lora: Lora | None) -> tuple[int, int]:
    """Return the numbers of trainable and of all parameters for a base's config.json, without loading weights.

    EVA moves ranks between layers after reading the rows, but its adapter is counted before. Without an adapter, all
    parameters are trainable.
    """
    return parameter_counts(meta_model(config, lora))


def parameter_counts(model: Any) -> tuple[int, int]:
    """Return the numbers of trainable and of all parameters of a model."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(count for count, trained in counts if trained), sum(count for count, _ in counts)


def has_frozen_encoder(model: Any) -> bool:
    """Return True if no weight of the encoder, and no token that it reads, is trained."""
    return not any(parameter.requires_grad for parameter in model.get_encoder().parameters())


def meta_model(config: dict[str, Any], lora: Lora | None) -> Any:
    """Return a model without weights (on torch's device `meta`) for a config.json and an adapter."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    with torch.device("meta"), quiet_transformers():
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**config))
        if config.get("tie_word_embeddings", True) is False:  # transformers 5 ties the head here
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        if lora is not None:
            # Other initializations need weights. New tokens may have any rows here; these are the last ones.
            plain = lora.model_copy(update={"init_lora_weights": True})
            last = config["vocab_size"] - len(lora.new_tokens)
            model = add_adapter(model, plain, new_tokens=range(last, config["vocab_size"]))
    return model

"""PEFT folders on disk: find an adapter, check its config, and describe its tensors before PEFT loads it.

PEFT accepts incomplete adapters: it initializes missing matrices at random, skips unknown ones, and drops keys of newer
versions. This module refuses such adapters, and its errors name the missing or unknown part.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ft.core.errors import LoraFtError, UsageError, first_line
from lora_ft.core.files import read_json
from lora_ft.export.checkpoint.tensor_checks import FLOATS, by, listed, not_finite
from lora_ft.export.checkpoint.weight_files import check_content, conversion
from lora_ft.export.runtime.safetensors_file import describe_tensors, map_tensors
from lora_ft.runs.run import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from peft import LoraConfig

PICKLED = "adapter_model.bin"

Described = Mapping[str, tuple[str, tuple[int, ...]]]

_TASKS = (None, "SEQ_2_SEQ_LM", "CAUSAL_LM", "FEATURE_EXTRACTION")
# Keys of LoraConfig that change the computation in ways that a merged T5 cannot express.
_UNSUPPORTED = (
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "megatron_config",
)
# Initializations that change the base's weights. PEFT repeats them when it loads the adapter, unless it was converted.
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Those that it cannot repeat: a random decomposition, and gradients on rows.
_UNREPEATABLE = ("pissa_niter", "lora_ga")
_WHOLE, _NUMBER, _SWITCH = "a positive integer", "a number", "true or false"
_NAMES, _TABLE = "a name or a list of names", "an object with numbers"
_LAYERS, _TOKENS = "an integer or a list of integers", "a list of token ids, or an object with such lists"
_KINDS: dict[str, str] = {
    "r": _WHOLE,
    "lora_alpha": _NUMBER,
    "lora_dropout": _NUMBER,
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "modules_to_save": _NAMES,
    "layers_pattern": _NAMES,
    "layers_to_transform": _LAYERS,
    "trainable_token_indices": _TOKENS,
    "rank_pattern": _TABLE,
    "alpha_pattern": _TABLE,
    "use_dora": _SWITCH,
    "use_rslora": _SWITCH,
    "fan_in_fan_out": _SWITCH,
}
_LARGEST_RANK = 1 << 16
_LOADING_KEYS = ("auto_mapping", "revision", "runtime_config", "peft_version")


def adapter_config(folder: Path) -> dict[str, Any]:
    """Return the adapter_config.json of an adapter's folder.

    Raises:
        UsageError: The file does not exist.
        LoraFtError: The file is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UsageError(f"{folder} is not an adapter: it has no {CONFIG}", "pass a run, or a folder saved by peft")
    return read_json(path)


def find_adapter(folder: Path) -> Path | None:
    """Return the PEFT folder that a path refers to: itself, its `adapter/`, or its only subfolder with an adapter.

    The Trainer writes `checkpoint-N/`, and PEFT writes a subfolder for each adapter not named "default".

    Raises:
        UsageError: Several subfolders hold an adapter.
    """
    for candidate in (folder, folder / "adapter"):
        if (candidate / CONFIG).is_file():
            return candidate
    subfolders = sorted(path.parent for path in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
    if len(subfolders) > 1:
        raise UsageError(
            f"{folder} holds {len(subfolders)} adapters ({', '.join(path.name for path in subfolders[:5])}"
            f"{', …' if len(subfolders) > 5 else ''})",
            f"pass one, e.g. {subfolders[-1]}",
        )
    return subfolders[0] if subfolders else None


def lora_config(folder: Path) -> LoraConfig:
    """Return an adapter's config as the installed PEFT's LoraConfig, whichever version wrote it.

    Raises:
        UsageError: There is no adapter, it is not LoRA, or it has parts that cannot be merged into a T5.
        LoraFtError: A value is not of the type that PEFT expects.
    """
    from peft import LoraConfig, PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    content, path = adapter_config(folder), folder / CONFIG
    kind = content.get("peft_type")
    if kind != "LORA":
        description = f"adapter of type {kind}" if kind else "adapter without a peft_type"
        method = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind, object) if isinstance(kind, str) else object
        if issubclass(method, PromptLearningConfig):  # trained inputs, which no checkpoint can hold
            raise UsageError(f"{folder} is an {description} (supported: LORA)", "train a LoRA adapter")
        raise UsageError(
            f"{folder} is an {description} (supported: LORA)",
            "merge it with peft (merge_and_unload) and pass the checkpoint, or train a LoRA adapter",
        )
    if content.get("task_type") not in _TASKS:
        raise UsageError(
            f"{folder} was trained for {content['task_type']!r} (supported: SEQ_2_SEQ_LM)",
            "train an adapter of T5ForConditionalGeneration",
        )
    for key in _UNSUPPORTED:
        if content.get(key) not in (None, False, [], {}):
            raise UsageError(f"{folder} uses {key} of peft, which is not supported", "train an adapter without it")
    if moved_base(content).startswith(_UNREPEATABLE):
        raise UsageError(
            f"{folder} was trained on a base that init_lora_weights {content['init_lora_weights']} changed, which peft "
            "cannot repeat",
            "save it with path_initial_model_for_weight_conversion of peft's save_pretrained",
        )
    for key, value in content.items():
        if value is not None and not _has_type(_KINDS.get(key), value):
            raise LoraFtError(f"{path}: {key} is not {_KINDS[key]} (got {value!r})", "copy it again")
    config_keys = {field.name for field in fields(LoraConfig)}
    settings = {key: value for key, value in content.items() if key in config_keys and key not in _LOADING_KEYS}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LoraConfig(**settings | {"task_type": "SEQ_2_SEQ_LM"})
    except Exception as error:  # PEFT raises many kinds
        raise LoraFtError(f"peft cannot read {path} ({first_line(error)})", "copy it again") from error


def moved_base(config: Mapping[str, Any]) -> str:
    """Return the initialization that changed the base of an adapter, or "" if the adapter fits the unchanged base.

    Without that change, A and B alone mean another adapter.
    """
    start = config.get("init_lora_weights")
    return start if isinstance(start, str) and start.startswith(_MOVES_BASE) else ""


def unknown_keys(folder: Path) -> list[str]:
    """Return the keys of an adapter's config that have a value but are unknown to the installed PEFT."""
    from peft import LoraConfig

    # PEFT 0.2 wrote `enable_lora` and `merge_weights`, which describe only how the adapter was loaded.
    supported = {field.name for field in fields(LoraConfig)} | {"enable_lora", "merge_weights", "peft_version"}
    content = adapter_config(folder)
    return [key for key, value in content.items() if key not in supported and value not in (None, False, [], {}, "")]


def describe(folder: Path) -> Described:
    """Return the dtype and shape of every tensor of an adapter, by name.

    Raises:
        UsageError: The adapter is not stored in safetensors.
        LoraFtError: The file is damaged.
    """
    path = folder / WEIGHTS
    if path.is_symlink() or path.is_file():
        check_content(path)
        return describe_tensors(path)
    if (folder / PICKLED).is_file():
        raise UsageError(
            f"{folder} has no {WEIGHTS}, only {PICKLED}, and pickles are never loaded",
            f"convert it without running its code: {conversion(folder / PICKLED, path)}",
        )
    raise UsageError(f"{folder} has no {WEIGHTS}", "save it again with peft; adapters are read from safetensors only")


def require_tensors(
    folder: Path, tensors: Described, expected: Mapping[str, tuple[int, ...]], optional: Set[str] = frozenset()
) -> None:
    """Compare an adapter's tensors with those that its config requires on a base, and check that all are finite.

    Args:
        folder: Folder of the adapter.
        tensors: Dtype and shape by name, from `describe`.
        expected: Shape by name, as PEFT would save the adapter.
        optional: Names in `expected` that may be missing.

    Raises:
        LoraFtError: Tensors are missing, unknown, of another shape, or not finite.
    """
    path = folder / WEIGHTS
    if not tensors.keys() - optional:
        raise LoraFtError(f"{path} contains no adapter tensors", "copy the adapter again, or train it again")
    if missing := [name for name in expected if name not in tensors and name not in optional]:
        raise LoraFtError(
            f"{path} is missing {listed(missing)}, which {CONFIG} requires",
            "copy the adapter again, correct target_modules, or name the base it was trained on",
        )
    if unknown := [name for name in tensors if name not in expected]:
        raise LoraFtError(
            f"{path} contains {listed(unknown)}, which {CONFIG} does not require on this base",
            f"copy the {CONFIG} that belongs to it, or name the base it was trained on",
        )
    for name, (kind, shape) in tensors.items():
        if shape != tuple(expected[name]):
            raise LoraFtError(
                f"{path}: {name} has shape {by(shape)}, but {CONFIG} requires {by(expected[name])}",
                f"copy the {CONFIG} that belongs to it (r, rank_pattern), or name the base it was trained on",
            )
        if kind not in FLOATS:
            raise LoraFtError(f"{path}: {name} is stored as {kind} (supported: {', '.join(FLOATS)})", "save it as F32")
    for name, array in map_tensors(path)[0].items():
        if odd := not_finite(array):
            raise LoraFtError(
                f"{path}: {odd:,} of {array.size:,} values of {name} are NaN or infinite",
                "training diverged; use an earlier checkpoint, or train again with a lower learning rate",
            )


def patterns_of(config: LoraConfig) -> Iterator[tuple[str, list[str]]]:
    """Yield each key of a config whose values PEFT reads as regular expressions, with these expressions."""
    if isinstance(config.target_modules, str) and config.target_modules != "all-linear":
        yield "target_modules", [config.target_modules]
    for key in ("rank_pattern", "alpha_pattern"):
        yield key, list(getattr(config, key) or {})
    for key in ("modules_to_save", "layers_pattern", "exclude_modules"):
        value = getattr(config, key) or []
        yield key, [value] if isinstance(value, str) else list(value)


def _has_type(kind: str | None, value: Any) -> bool:
    """Return whether a config's value has the type `kind`."""
    if kind == _WHOLE:
        return type(value) is int and 1 <= value <= _LARGEST_RANK
    if kind == _NUMBER:
        return type(value) in (int, float) and math.isfinite(value) and value >= 0
    if kind == _LAYERS:
        return all(type(item) is int for item in (value if isinstance(value, list) else [value]))
    if kind == _TOKENS:
        rows = value.values() if isinstance(value, dict) else [value]
        return all(isinstance(row, list) and all(type(item) is int for item in row) for row in rows)
    if kind == _SWITCH:
        return isinstance(value, bool)
    if kind == _NAMES:
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))
    if kind == _TABLE:
        return isinstance(value, dict) and all(_has_type(_NUMBER, number) and number > 0 for number in value.values())
    return True

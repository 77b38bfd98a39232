"""Generation settings of a checkpoint, from its generation_config.json or else its config.json.

Settings take precedence in this order: command line or call, task, checkpoint, defaults of `Options`. As in
transformers, settings in config.json are used only without a generation_config.json. Token ids may come from
either file. An unsupported setting is refused by name, because answers would differ silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.core.errors import UsageError
from lora_ft.core.files import read_json
from lora_ft.core.generation_options import Options, check_ranges
from lora_ft.core.special_tokens import SPECIAL, SpecialTokens

FILE = "generation_config.json"
_SUPPORTED = (
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
_LENGTHS = ("max_length", "min_length")  # limits on decoder tokens, including the start token
# Settings that change answers but are not supported by the runtime, with the values that have no effect.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_return_sequences": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "penalty_alpha": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "typical_p": (1,),
    "min_p": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (0, 1),
    "guidance_scale": (1,),
    "constraints": (),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_decoder_ids": (),
    "sequence_bias": (),
    "renormalize_logits": (),
    "remove_invalid_values": (),
    "watermarking_config": (),
    "stop_strings": (),
    "max_time": (),
    "dola_layers": (),
    "token_healing": (),
    "custom_generate": (),
}


@dataclass(frozen=True)
class Generation:
    """Default generation behavior of a checkpoint.

    Attributes:
        special: Special tokens of the checkpoint.
        options: Settings of the checkpoint, by the names of `Options`.
    """

    special: SpecialTokens
    options: dict[str, Any]


def read_generation(folder: Path) -> Generation:
    """Return the special tokens and generation settings of a checkpoint folder.

    Raises:
        UsageError: A setting is not supported or out of range, or a token id is outside the vocabulary.
    """
    config = read_json(folder / "config.json")
    path = folder / FILE
    settings = read_json(path) if path.is_file() else config
    where = path if path.is_file() else folder / "config.json"
    if not isinstance(settings, dict) or not isinstance(config, dict):
        raise UsageError(f"{where} is not a JSON object", "copy it again from the original base")
    return generation_of(settings, config, str(where))


def generation_of(settings: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Generation:
    """Return the special tokens and generation settings from the contents of the files, as `read_generation` does.

    Args:
        settings: Content of generation_config.json, or of config.json if that file does not exist.
        config: Content of config.json, for the vocabulary size and for token ids that `settings` lack.
        where: Path of `settings`, for errors.
    """
    ids = {name: config.get(name) if settings.get(name) is None else settings[name] for name in SPECIAL}
    vocabulary = config.get("vocab_size")
    if type(vocabulary) is not int or vocabulary < 1:
        raise UsageError(
            f"{where}: vocab_size is not a positive integer (got {vocabulary!r})", "copy config.json again"
        )
    special = SpecialTokens.of(ids, vocabulary, where)
    for name, neutral in _UNSUPPORTED.items():
        value = settings.get(name)
        if value not in (None, False, [], {}, "") and not any(value == allowed for allowed in neutral):
            raise UsageError(
                f"{where}: {name} is not supported (got {value!r})", f"remove it, or set it to {(*neutral, None)[0]!r}"
            )
    options = {name: settings[name] for name in _SUPPORTED if settings.get(name) is not None}
    for name, value in (("max_new_tokens", settings.get("max_length")), ("min_new_tokens", settings.get("min_length"))):
        if value is None:
            continue
        if type(value) is not int:
            raise UsageError(
                f"{where}: {name.replace('new_tokens', 'length')} is not an integer (got {value!r})", "correct it"
            )
        if name == "min_new_tokens" or value > 1:
            options.setdefault(name, max(0, value - 1))
    _check(options, vocabulary, where)
    return Generation(special, options)


def _check(options: Mapping[str, Any], vocabulary: int, where: str) -> None:
    """Raise UsageError, naming the file, if `Options` refuses a setting.

    Minimum and maximum length are compared later, when the task's own limit is known.
    """
    try:
        check_ranges(options)
        shared = {name: value for name, value in options.items() if name != "min_new_tokens"}
        Options.of(shared).check_tokens(vocabulary)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", error.remedy or "correct it in that file") from error

"""Save merged models so that transformers 4, transformers 5 and the exporter all load the same model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ft.core.files import read_json, write_json
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.models.bases import quiet_transformers

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

MERGE = "merge.json"  # record of the merge: base, adapter and the training's metrics
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)


def save_checkpoint(
    model: T5ForConditionalGeneration, base: Path, out: Path, extended: Tokenizer | None = None
) -> None:
    """Write weights (safetensors), configs and the tokenizer to the folder `out`.

    FLAN-T5's head is a separate matrix. transformers 5 loads it as such, but saves a config that declares it tied.
    transformers 4 would lose the head with this config (transformers PR#47620), so the config is corrected.

    Args:
        model: Merged model.
        base: Folder of the base, whose tokenizer files are copied.
        out: Existing folder to write to.
        extended: Tokenizer with new tokens. Default: the base's.
    """
    untied, scaled = is_untied(model), is_scaled(model)
    mark_untied(model)
    with quiet_transformers():
        model.save_pretrained(out)
    path = out / "config.json"
    config = read_json(path)
    write_json(path, config | {"tie_word_embeddings": not untied, "scale_decoder_outputs": scaled})
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    if extended is not None:
        extended.save(out / "tokenizer.json")
        _list_added_tokens(out)


def _list_added_tokens(out: Path) -> None:
    """Complete the list of added tokens in tokenizer_config.json: transformers 5 then reads no others for a T5."""
    path = out / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    if "added_tokens_decoder" in config:
        tokens = read_json(out / "tokenizer.json")["added_tokens"]
        added = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in tokens}
        write_json(path, config | {"added_tokens_decoder": added | config["added_tokens_decoder"]})


def mark_untied(model: T5ForConditionalGeneration) -> None:
    """Mark a head with separate weights as untied in the model's config, which transformers 5 does not do.

    Otherwise transformers does not save a head that equals the embedding, and PEFT ties the two.
    """
    if is_untied(model):
        model.config.tie_word_embeddings = False


def is_untied(model: T5ForConditionalGeneration) -> bool:
    """Return whether the head has separate weights."""
    head, embedding = model.lm_head.weight, model.shared.weight
    return head is not embedding and (head.is_meta or head.data_ptr() != embedding.data_ptr())


def is_scaled(model: T5ForConditionalGeneration) -> bool:
    """Return whether the installed transformers scales the hidden state before the head.

    Since version 5, the config of t5 has a separate key for it (scale_decoder_outputs), and mt5 is never scaled. umt5
    is always scaled, since its config declares every head tied.
    """
    import transformers

    config = model.config
    if config.model_type == "mt5" and int(transformers.__version__.split(".")[0]) >= 5:
        return False
    return bool(getattr(config, "scale_decoder_outputs", config.tie_word_embeddings))

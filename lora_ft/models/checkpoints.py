"""Saving a merged model such that transformers 4 and 5, and the exporter, read the same model back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ft.core.files import read_json, write_json
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.models.bases import quiet_transformers

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

MERGE = "merge.json"  # what was merged, and of which training
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")


def save_checkpoint(
    model: T5ForConditionalGeneration, base: Path, out: Path, extended: Tokenizer | None = None
) -> None:
    """Write weights (safetensors), configs and the tokenizer, the base's or an `extended` one, into the folder `out`.

    FLAN-T5's head is a matrix of its own. transformers 5 loads it so but saves a config that says it is tied, which
    transformers 4 believes: the head would be lost there (transformers PR#47620). The config is put right here.
    """
    untied, scaled = is_untied(model), is_scaled(model)
    tell_ties(model)
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


def tell_ties(model: T5ForConditionalGeneration) -> None:
    """Let the config of a model with a head of its own say so, which transformers 5 does not.

    It would leave the head out of a file when it looks like the embedding, and peft would tie the two.
    """
    if is_untied(model):
        model.config.tie_word_embeddings = False


def is_untied(model: T5ForConditionalGeneration) -> bool:
    """Whether the head has weights of its own."""
    head, embedding = model.lm_head.weight, model.shared.weight
    return head is not embedding and (head.is_meta or head.data_ptr() != embedding.data_ptr())


def is_scaled(model: T5ForConditionalGeneration) -> bool:
    """Whether transformers scales the hidden state before the head, in the version that is installed.

    For t5 the config says so under a name of its own since version 5; mt5 is never scaled there, and umt5 always, as
    its config calls every head tied.
    """
    import transformers

    config = model.config
    if config.model_type == "mt5" and int(transformers.__version__.split(".")[0]) >= 5:
        return False
    return bool(getattr(config, "scale_decoder_outputs", config.tie_word_embeddings))

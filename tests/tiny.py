"""A T5 small enough for unit tests, written as files without the code under test."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import AutoConfig, AutoModelForSeq2SeqLM

CONFIG: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 80,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "dropout_rate": 0.1,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "is_encoder_decoder": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


JSON_MARKS = '«»[];"-′•'
"""Characters of the codec `json` that the tokenizer lacks; with them it has as many tokens as the model has rows."""


def tiny_tokenizer(more: str = "") -> Tokenizer:
    """Return a tokenizer with one token per letter, T5's special tokens and its word mark, and `more` characters."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_letters, *string.digits, *".,:!?", *more]
    tokenizer = Tokenizer(Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer


def save_tiny_t5(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a random checkpoint in the form of FLAN-T5 on the Hub. `changes` replace keys of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **changes}
    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**config))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items() if "embed_tokens" not in name}
    weights["shared.weight"] = torch.randn_like(weights["shared.weight"])
    weights.pop("lm_head.weight", None)
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = torch.randn(config["vocab_size"], config["d_model"])
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    files = {
        "config.json": config,
        "generation_config.json": {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "</s>",
            "pad_token": "<pad>",
        },
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2), encoding="utf-8")
    return folder

"""ByT5's tokenizer as a tokenizer.json for the runtime, since transformers has it only as Python code."""

from __future__ import annotations

import tempfile
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from lora_ft.core.codecs import Codec
from lora_ft.core.token_bytes import byte_names
from lora_ft.core.tokenizer import Tokenizer

_SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1 and 2; then the 256 bytes, then the sentinels (arXiv 2105.13626)
_SENTINELS = 125


def byte_tokenizer(codec: Codec | None = None) -> Tokenizer:
    """Return ByT5's tokenizer. A token id is the value of a UTF-8 byte plus 3, and texts end with </s>."""
    names = byte_names()
    vocabulary = {name: i for i, name in enumerate(_SPECIAL)}
    vocabulary |= {names[byte]: byte + len(_SPECIAL) for byte in range(256)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([*_SPECIAL, *(f"<extra_id_{i}>" for i in range(_SENTINELS))])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "tokenizer.json")
        tokenizer.save(str(path))
        return Tokenizer(path, codec)

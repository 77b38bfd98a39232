"""ByT5's tokenizer, which exists in transformers only as Python code, as a tokenizer.json for the runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from lora_ft.core.codecs import Codec
from lora_ft.core.tokenizer import Tokenizer

_SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1 and 2; then the 256 bytes, then the sentinels (arXiv 2105.13626)
_SENTINELS = 125


def byte_tokenizer(codec: Codec | None = None) -> Tokenizer:
    """Return ByT5's tokenizer: each byte of UTF-8 is a token, its value plus 3, with </s> at the end."""
    byte_names = _byte_names()
    vocabulary = {name: i for i, name in enumerate(_SPECIAL)}
    vocabulary |= {byte_names[byte]: byte + len(_SPECIAL) for byte in range(256)}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens([*_SPECIAL, *(f"<extra_id_{i}>" for i in range(_SENTINELS))])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "tokenizer.json")
        made.save(str(path))
        return Tokenizer(path, codec)


def _byte_names() -> list[str]:
    """Return the character by which tokenizers' ByteLevel represents each byte (as in openai/gpt-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [names[byte] for byte in range(256)]

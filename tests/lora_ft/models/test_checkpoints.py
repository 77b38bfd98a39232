"""Saved checkpoints have the tokenizer of their base, in the files that transformers reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lora_ft.models.bases import load_model, load_tokenizer
from lora_ft.models.checkpoints import save_checkpoint
from tests.lora_ft.models.sentencepiece_files import train_sentencepiece
from tests.tiny import save_tiny_t5

T5 = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_t5(tmp_path / "base")


def save_sentencepiece(folder: Path, added: str) -> None:
    """Replace a tokenizer.json by the files of transformers' slow T5 tokenizer with an added token."""
    (folder / "tokenizer.json").unlink(missing_ok=True)
    train_sentencepiece(folder, ["Hello there, the printer is broken.", "two spaces 12"])
    rows = len((folder / "spiece.vocab").read_text().splitlines())
    (folder / "spiece.vocab").unlink()
    (folder / "added_tokens.json").write_text(json.dumps({added: rows}))
    (folder / "tokenizer_config.json").write_text(json.dumps(T5))


def test_generation_settings_without_an_effect_are_kept(base: Path, tmp_path: Path) -> None:
    settings = json.loads((base / "generation_config.json").read_text())
    settings |= {"temperature": 0.7, "early_stopping": True, "num_beams": 1, "length_penalty": 2.0}
    (base / "generation_config.json").write_text(json.dumps(settings))
    out = tmp_path / "out"
    out.mkdir()
    save_checkpoint(load_model(base), base, out)
    saved = json.loads((out / "generation_config.json").read_text())
    assert {name: saved[name] for name in settings if name != "num_beams"} == {
        name: value for name, value in settings.items() if name != "num_beams"
    }


def test_added_tokens_of_a_sentencepiece_model_are_kept(base: Path, tmp_path: Path) -> None:
    save_sentencepiece(base, "<hl>")
    tokenizer, out = load_tokenizer(base), tmp_path / "out"
    assert tokenizer.ids(["<hl>"]) == [tokenizer.rows - 1]
    out.mkdir()
    save_checkpoint(load_model(base), base, out)
    texts = ["two <hl>spaces <hl> 12"]
    assert load_tokenizer(out).encode(texts) == tokenizer.encode(texts)


def test_transformers_finds_new_tokens_beside_the_added_ones_of_the_config(base: Path, tmp_path: Path) -> None:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added = {
        str(row): {"content": token, "special": True, **flags} for row, token in enumerate(["<pad>", "</s>", "<unk>"])
    }
    (base / "tokenizer_config.json").write_text(json.dumps(T5 | {"added_tokens_decoder": added}))
    tokenizer, out = load_tokenizer(base, new_tokens=["<new>"]), tmp_path / "out"
    out.mkdir()
    save_checkpoint(load_model(base), base, out, tokenizer)
    [row] = tokenizer.ids(["<new>"])
    theirs = AutoTokenizer.from_pretrained(out)
    assert theirs.convert_tokens_to_ids("<new>") == row and row in theirs("a <new>b")["input_ids"]
    assert theirs.convert_tokens_to_ids("</s>") == 1

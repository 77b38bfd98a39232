"""Files of small SentencePiece models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceTrainer


def train_sentencepiece(folder: Path, texts: Sequence[str]) -> None:
    """Write spiece.model and spiece.vocab of some texts, with T5's special tokens, to a folder."""
    corpus = folder.with_name("corpus.txt")
    corpus.write_text("\n".join([*texts] * 20))
    SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )

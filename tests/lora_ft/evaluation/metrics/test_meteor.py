"""METEOR with a WordNet of one synset, since the full data would have to be downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nltk.corpus import wordnet
from nltk.translate.meteor_score import meteor_score

from lora_ft.evaluation.metrics import score
from lora_ft.tasks.evaluate import Evaluate

# The header from which nltk reads the version, then a synset at its byte offset (wndb(5WN)).
_LICENCE = "  1 WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved.\n"
_SYNSET = f"{len(_LICENCE):08d} 00 n 02 auto 0 car 0 000 | a motor vehicle  \n"


@pytest.fixture
def small_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    kinds = ("noun", "verb", "adj", "adv")
    files = {f"{part}.{kind}": _LICENCE for part in ("index", "data") for kind in kinds}
    files |= {f"{kind}.exc": "" for kind in kinds} | {"index.sense": "", "cntlist.rev": ""}
    files["lexnames"] = "00\tnoun.Tops\t1\n"
    files["data.noun"] += _SYNSET
    files["index.noun"] += "".join(f"{word} n 1 0 1 0 {len(_LICENCE):08d}  \n" for word in ("auto", "car"))
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    yield
    wordnet._unload()


@pytest.mark.usefixtures("small_wordnet")
def test_meteor_equals_that_of_nltk_with_synonyms_and_stems() -> None:
    answers = ["The auto stopped.", "A car stops!", "Nothing alike", ""]
    references = [["the car stopped"], ["rain", "a car stopped"], ["the car stopped"], ["the car"]]
    scored = score("meteor", answers, references, Evaluate())
    full = 100 * (1 - 0.5 * (1 / 3) ** 3)  # all three words in one chunk
    assert scored.rows == pytest.approx([full, full, 0, 0])
    expected = 100 * meteor_score([["the", "car", "went"]], ["an", "auto", "went"])
    assert score("meteor", ["An auto went."], [["The car went."]], Evaluate()).value == pytest.approx(expected)

"""Generation: the prompt that was trained is the prompt that is asked, and options are transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import T5ForConditionalGeneration

from export.errors import UsageError
from export.runtime.text import Tokenizer
from lora_ft.export_run import export
from lora_ft.generate import generate
from lora_ft.models import Model, open_model
from lora_ft.runs import Run


@pytest.fixture(scope="module")
def model(tiny_run: Run) -> Model:
    return open_model(str(tiny_run.folder))


def test_a_run_puts_texts_and_rows_through_its_prompt(model: Model) -> None:
    assert model.kind == "run"
    text = generate(model, ["abc"], {})
    assert generate(model, [{"text": "abc", "other": 1}], {}) == text
    assert generate(model, ["say: abc"], {}, raw=True) == text
    assert generate(model, ["abc"], {}, raw=True) != text


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "length_penalty": 0.5},
        {"num_beams": 2, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
        {"repetition_penalty": 1.5},
        {"do_sample": True, "temperature": 0.8, "top_k": 10, "top_p": 0.9, "seed": 3},
    ],
)
def test_options_do_what_they_do_in_transformers(options: dict[str, float], tiny_base: Path) -> None:
    ids = Tokenizer(tiny_base / "tokenizer.json").encode(["some text: abc"])
    reference = T5ForConditionalGeneration.from_pretrained(tiny_base).eval()
    theirs = dict(options)
    torch.manual_seed(int(theirs.pop("seed", 0)))
    out = reference.generate(input_ids=torch.tensor(ids), max_new_tokens=12, **theirs)
    expected = Tokenizer(tiny_base / "tokenizer.json").decode([out[0, 1:].tolist()])
    assert generate(open_model(str(tiny_base)), ["some text: abc"], {**options, "max_new_tokens": 12}) == expected


def test_the_limit_is_the_tasks_not_transformers_twenty_tokens(model: Model) -> None:
    assert model.options["max_new_tokens"] == 24
    answer = model.engine.generate(["say: abc"], {**model.options, "min_new_tokens": 24})[0]
    assert (answer.tokens, answer.cut) == (24, True)


def test_a_batch_answers_as_single_rows_do(model: Model) -> None:
    """transformers#36461: padding changed what FLAN-T5-small generates."""
    texts = ["a", "some longer text with words", "abc abc", "z" * 30]
    together = generate(model, texts, {}, batch_size=4)
    assert together == [generate(model, [text], {})[0] for text in texts]


def test_a_bundle_says_what_it_cannot_do(tiny_run: Run, tmp_path: Path) -> None:
    export(str(tiny_run.folder), tmp_path / "bundle")
    with pytest.raises(UsageError, match="has no num_beams"):
        generate(open_model(str(tmp_path / "bundle")), ["abc"], {"num_beams": 4})


def test_rows_need_a_prompt_to_go_into(tiny_base: Path, model: Model) -> None:
    with pytest.raises(UsageError, match="has no prompt"):
        generate(open_model(str(tiny_base)), [{"text": "abc"}], {})
    with pytest.raises(UsageError, match="lacks the column 'text'"):
        generate(model, [{"words": "abc"}], {})


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run, a checkpoint nor a bundle"):
        open_model(str(tmp_path))

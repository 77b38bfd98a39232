"""Generation uses the prompt of training, and the options of transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from transformers import T5ForConditionalGeneration

from lora_ft.cli import run as lora_ft
from lora_ft.core.errors import UsageError
from lora_ft.core.progress import Silent
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.runtime.manifest import LAYOUT_RECORD
from lora_ft.export_onnx import export_onnx
from lora_ft.generate import generate, new_seed, stream
from lora_ft.models.loading import load
from lora_ft.models.model import Model
from lora_ft.runs.run import Run
from lora_ft.serve import named_bundles


class Notes(Silent):
    """Records notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def model(tiny_run: Run) -> Model:
    return load(str(tiny_run.folder))


def test_a_run_fills_its_prompt_with_texts_and_rows(model: Model) -> None:
    assert model.kind == "run"
    text = generate(model, ["abc"], {})
    assert generate(model, [{"text": "abc", "other": 1}], {}) == text
    assert generate(model, ["say: abc"], {}, raw=True) == text
    assert generate(model, ["abc"], {}, raw=True) != text


def test_rows_are_any_iterable_of_texts_and_rows(model: Model) -> None:
    expected = generate(model, ["abc", "de"], {})
    rows = [{"text": "abc"}, {"text": "de"}]
    for several in (tuple(rows), iter(rows), np.array(["abc", "de"]), pd.DataFrame(rows), Dataset.from_list(rows)):
        assert generate(model, several, {}) == expected
    assert generate(model, pd.DataFrame({"text": []}), {}) == generate(model, [], {}) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "the input is neither text nor rows (got NoneType)"),
        (5, "the input is neither text nor rows (got int)"),
        (pa.table({"text": ["abc"]}), "the input is neither text nor rows (got Table)"),
        (b"abc", "item 1 of the input is neither text nor row (got int)"),
        (["abc", None], "item 2 of the input is neither text nor row (got NoneType)"),
        ([["abc"]], "item 1 of the input is neither text nor row (got list)"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "the frame has two columns named 'text'"),
        (pd.DataFrame([["a", "b"]], columns=["a; b", "a; b"]), "the frame has two columns named 'a; b'"),
    ],
    ids=repr,
)
def test_other_values_are_refused(model: Model, rows: Any, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        generate(model, rows, {})


def test_half_a_character_is_replaced_without_changing_other_rows(model: Model) -> None:
    progress = Notes()
    answers = generate(model, ["abc", "a\ud83db", {"text": "abc"}], {}, progress=progress)
    assert answers[0] == answers[2] == generate(model, ["abc"], {})[0]
    assert answers[1] == generate(model, ["a\ufffdb"], {})[0]
    assert any("1 of 3 rows contain half a character" in note and "first: row 2" in note for note in progress.notes)


def test_a_row_without_text_is_named(model: Model) -> None:
    with pytest.raises(UsageError, match="row 2: column 'text' holds an object"):
        generate(model, ["a", {"text": {"en": "b"}}], {})


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
def test_options_work_as_in_transformers(options: dict[str, float], tiny_base: Path) -> None:
    ids = Tokenizer(tiny_base / "tokenizer.json").encode(["some text: abc"])
    reference = T5ForConditionalGeneration.from_pretrained(tiny_base).eval()
    arguments = dict(options)
    torch.manual_seed(int(arguments.pop("seed", 0)))
    out = reference.generate(input_ids=torch.tensor(ids), max_new_tokens=12, **arguments)
    expected = Tokenizer(tiny_base / "tokenizer.json").decode([out[0, 1:].tolist()])
    assert generate(load(str(tiny_base)), ["some text: abc"], {**options, "max_new_tokens": 12}) == expected


def test_the_answer_limit_is_that_of_the_task(model: Model) -> None:
    assert model.options["max_new_tokens"] == 24
    answer = model.backend.generate(["say: abc"], {**model.options, "min_new_tokens": 24})[0]
    assert (answer.tokens, answer.cut) == (24, True)


def test_answers_do_not_depend_on_the_batch(model: Model) -> None:
    """transformers#36461: padding changed what FLAN-T5-small generates."""
    texts = ["a", "some longer text with words", "abc abc", "z" * 30]
    together = generate(model, texts, {}, batch_size=4)
    assert together == [generate(model, [text], {})[0] for text in texts]


@pytest.fixture(scope="module")
def bundle_folder(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate") / "bundle"
    export_onnx(str(tiny_run.folder), folder)
    return folder


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Model:
    return load(str(bundle_folder))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True},
        {"num_beams": 2, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
        {"num_beams": 3, "num_return_sequences": 2},
        {"repetition_penalty": 1.5},
        {"prompt_lookup": True},
    ],
)
def test_a_bundle_generates_the_answers_of_its_run(model: Model, bundle: Model, options: dict[str, Any]) -> None:
    run_options = {name: value for name, value in options.items() if name != "prompt_lookup"}
    texts = ["abc", "x", "some more words"]
    assert generate(bundle, texts, options) == generate(model, texts, run_options)


def test_sampling_is_reproducible_by_seed(bundle: Model) -> None:
    first, repeated, different = (
        generate(bundle, ["abc", "d"], {"do_sample": True, "temperature": 2.0, "seed": seed}) for seed in (3, 3, 4)
    )
    assert first == repeated != different


def test_a_stream_equals_the_answers(bundle: Model) -> None:
    texts = ["abc", "x"]
    assert "".join(stream(bundle, texts, {})).splitlines() == generate(bundle, texts, {})


def test_unsupported_options_are_refused(model: Model, bundle: Model) -> None:
    with pytest.raises(UsageError, match="unknown generation option penalty_alpha"):
        generate(bundle, ["abc"], {"penalty_alpha": 0.5})
    with pytest.raises(UsageError, match="prompt_lookup is supported for bundles only"):
        generate(model, ["abc"], {"prompt_lookup": True})
    with pytest.raises(UsageError, match="streaming is supported for bundles only"):
        list(stream(model, ["abc"], {}))


def test_rows_without_a_prompt_are_refused(tiny_base: Path, model: Model) -> None:
    with pytest.raises(UsageError, match="has no prompt"):
        generate(load(str(tiny_base)), [{"text": "abc"}], {})
    with pytest.raises(UsageError, match="lacks the column 'text'"):
        generate(model, [{"words": "abc"}], {})


def test_a_folder_may_begin_with_the_home_folder(
    tiny_run: Run, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tiny_run.folder, bundle_folder):
        monkeypatch.setenv("HOME", str(folder.parent))
        assert load(f"~/{folder.name}").generate(["abc"]) == load(folder).generate(["abc"])
    assert named_bundles([f"a=~/{bundle_folder.name}"]) == {"a": bundle_folder}


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run, an adapter, a checkpoint nor a bundle"):
        load(str(tmp_path))
    (tmp_path / LAYOUT_RECORD).write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="is a layout for other programs"):
        load(tmp_path)


@pytest.mark.parametrize("options", [{"num_beams": 1_000_000}, {"max_new_tokens": 10**12}, {"temperature": -1.0}])
def test_values_out_of_range_are_refused_by_every_backend(model: Model, bundle: Model, options: dict[str, Any]) -> None:
    for each in (model, bundle):
        with pytest.raises(UsageError, match=next(iter(options))):
            generate(each, ["abc"], options)


def test_sampling_without_a_seed_uses_a_new_one(model: Model, bundle: Model) -> None:
    options = {"do_sample": True, "temperature": 5.0}
    for each in (model, bundle):
        assert len({generate(each, ["abc"], options)[0] for _ in range(4)}) > 1
        seed = new_seed(each, options)
        assert seed is not None and seed != new_seed(each, options)
        first, again = (generate(each, ["abc"], {**options, "seed": seed}) for _ in range(2))
        assert first == again
    assert new_seed(model, {}) is new_seed(model, {**options, "seed": 0}) is None


@pytest.mark.parametrize("options", [["--top-p", "7"], ["--stream", "--num-beams", "2"], ["--stream", "--top-p", "7"]])
def test_no_seed_is_shown_if_an_option_is_refused(
    bundle_folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert lora_ft(["generate", str(bundle_folder), "abc", "--do-sample", *options]) == 2
    assert "sampled with seed" not in capsys.readouterr().err


def test_a_stream_shows_its_seed(bundle_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(bundle_folder), "abc", "--do-sample", "--temperature", "5", "--stream"]
    assert lora_ft(command) == 0
    first = capsys.readouterr()
    seed = re.search(r"sampled with seed (\d+)", first.err)
    assert seed is not None and lora_ft([*command, "--seed", seed[1]]) == 0
    assert capsys.readouterr().out == first.out


def test_the_shown_seed_repeats_the_answer(tiny_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(tiny_run.folder), "abc", "--do-sample", "--temperature", "5"]
    assert lora_ft(command) == 0
    first = capsys.readouterr()
    seed = re.search(r"sampled with seed (\d+); repeat it with --seed \1", first.err)
    assert seed is not None
    assert lora_ft([*command, "--seed", seed[1]]) == 0
    again = capsys.readouterr()
    assert again.out == first.out and "sampled with seed" not in again.err

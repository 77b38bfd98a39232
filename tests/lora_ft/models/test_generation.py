"""Generation settings and token ids of a checkpoint apply in PyTorch, in its bundle and in training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.checkpoint.generation_config import read_generation
from lora_ft.export.runtime import Generator
from lora_ft.export_onnx import export_onnx
from lora_ft.generate import generate
from lora_ft.models.bases import find_base, load_model
from lora_ft.models.loading import load
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from lora_ft.validate import validate
from tests.export.oracle import redraw, torch_model
from tests.tiny import save_tiny_t5

T5 = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
TEXTS = ["say: a", "hello there", "some words, and then some more of them", "X", ""]
CASES: dict[str, dict[str, Any]] = {
    "min_length": {**T5, "min_length": 9, "max_length": 14},
    "several ends": {**T5, "eos_token_id": [1, 5, 30, 41], "max_new_tokens": 12},
    "several ends and beams": {**T5, "eos_token_id": [1, 5, 30, 41], "num_beams": 3, "max_new_tokens": 12},
    "other ids": {"decoder_start_token_id": 3, "eos_token_id": 2, "pad_token_id": 1, "max_new_tokens": 12},
    "the start is not the padding": {**T5, "decoder_start_token_id": 7, "min_new_tokens": 4, "max_new_tokens": 12},
    "no_repeat_ngram_size": {**T5, "no_repeat_ngram_size": 2, "max_new_tokens": 12},
    "repetition_penalty": {**T5, "repetition_penalty": 1.7, "max_new_tokens": 12},
    "forced": {**T5, "forced_bos_token_id": 40, "forced_eos_token_id": 1, "max_new_tokens": 8},
    "beams": {**T5, "num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "max_new_tokens": 12},
    "bans": {
        **T5,
        "bad_words_ids": [[30], [41, 42]],
        "suppress_tokens": [12],
        "begin_suppress_tokens": [24],
        "max_new_tokens": 12,
    },
}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a tiny checkpoint with a generation_config.json, or without one for None."""

    def write(generation: dict[str, Any] | None, name: str = "base", **config: Any) -> Path:
        folder = redraw(save_tiny_t5(tmp_path / name, **config), seed=4, end=1.5)
        path = folder / "generation_config.json"
        path.unlink() if generation is None else path.write_text(json.dumps(generation), encoding="utf-8")
        return folder

    return write


def expected(folder: Path, texts: list[str], special: SpecialTokens) -> list[list[int]]:
    """Return the tokens that transformers generates from a checkpoint, one text at a time."""
    model, tokenizer = torch_model(folder), find_tokenizer(folder)
    answers = []
    for text in texts:
        with torch.inference_mode():
            ids = torch.tensor(tokenizer.encode([text]))
            mask = torch.ones_like(ids)  # without a mask, transformers 4 treats every pad token of a text as padding
            answers.append(special.trim(model.generate(ids, attention_mask=mask)[0, 1:].numpy()).tolist())
    return answers


def find_tokenizer(folder: Path) -> Any:
    from lora_ft.models.bases import load_tokenizer

    return load_tokenizer(folder)


@pytest.mark.parametrize("name", CASES)
def test_checkpoint_generates_with_its_settings(save: Callable[..., Path], tmp_path: Path, name: str) -> None:
    folder = save(CASES[name])
    special = read_generation(folder).special
    answers = expected(folder, TEXTS, special)
    texts = find_tokenizer(folder).decode(answers)
    assert generate(load(str(folder)), TEXTS, {}) == texts
    export_onnx(str(folder), tmp_path / "bundle")
    generator = Generator.load(tmp_path / "bundle", threads=1)
    assert [answer.tokens.tolist() for answer in generator.answer(TEXTS)] == answers
    assert generate(load(str(tmp_path / "bundle")), TEXTS, {}) == texts


def test_call_takes_precedence_over_task_and_task_over_checkpoint(
    save: Callable[..., Path], make_task: Callable[..., Path], tmp_path: Path
) -> None:
    base = save({**T5, "num_beams": 3, "min_length": 6, "repetition_penalty": 1.5})
    path = make_task(base=str(base), generate={"num_beams": 1}, train={"max_steps": 1})
    run = train(load_task(path), tmp_path / "run")
    export_onnx(str(run.folder), tmp_path / "bundle")
    for model in (load(str(run.folder)), load(str(tmp_path / "bundle"))):
        options = {name: model.options.get(name) for name in ("num_beams", "min_new_tokens", "repetition_penalty")}
        assert options == {"num_beams": 1, "min_new_tokens": 5, "repetition_penalty": 1.5}
        assert model.options["max_new_tokens"] == 24
    of_run, of_bundle = (
        generate(load(str(folder)), ["a b"], {"min_new_tokens": 20}) for folder in (run.folder, tmp_path / "bundle")
    )
    assert of_run == of_bundle


@pytest.mark.parametrize("layout", ["single", "optimum"])
def test_layouts_have_the_token_ids_of_their_checkpoint(save: Callable[..., Path], tmp_path: Path, layout: str) -> None:
    folder = save({"decoder_start_token_id": 3, "eos_token_id": [2, 5, 41], "pad_token_id": 1, "max_new_tokens": 12})
    export_onnx(str(folder), tmp_path / layout, layout=layout)
    config = json.loads((tmp_path / layout / "generation_config.json").read_text(encoding="utf-8"))
    assert (config["decoder_start_token_id"], config["eos_token_id"], config["pad_token_id"]) == (3, [2, 5, 41], 1)


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"encoder_no_repeat_ngram_size": 3}, "encoder_no_repeat_ngram_size is not supported .got 3."),
        ({"num_beam_groups": 2, "num_beams": 4}, "num_beam_groups is not supported .got 2."),
        ({"min_length": 40}, "min_new_tokens is 39, more than max_new_tokens = 24"),
        ({"num_beams": 10**6}, "num_beams"),
        ({"eos_token_id": 80}, "eos_token_id is not a token of the vocabulary .got 80."),
        ({"suppress_tokens": [99]}, "token 99 is not in the vocabulary"),
        ({"num_beams": 4, "do_sample": True}, "do_sample and num_beams"),
        ({"min_length": "6"}, "min_length is not an integer"),
    ],
)
def test_unsupported_settings_are_refused_before_training(
    save: Callable[..., Path], make_task: Callable[..., Path], tmp_path: Path, generation: dict[str, Any], message: str
) -> None:
    path = make_task(base=str(save({**T5, **generation})))
    errors = validate(str(path)).errors
    assert [error.key for error in errors] == ["generate"]
    with pytest.raises(UsageError, match=message):
        train(load_task(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_in_config_json_apply_without_a_generation_config(save: Callable[..., Path]) -> None:
    both = save(T5, "both", num_beams=4, min_length=5)
    assert read_generation(both).options == {}
    alone = save(None, "alone", num_beams=4, min_length=5, eos_token_id=2)
    assert read_generation(alone).options == {"num_beams": 4, "min_new_tokens": 4}
    assert read_generation(alone).special == SpecialTokens(0, (2,), 0)
    assert read_generation(save({"max_length": 30}, "ids", eos_token_id=2, pad_token_id=1)).special.ends == (2,)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "min_length": st.integers(0, 12),
            "max_length": st.integers(2, 14),
            "num_beams": st.integers(1, 4),
            "no_repeat_ngram_size": st.integers(0, 3),
            "repetition_penalty": st.sampled_from([0.8, 1.0, 1.4]),
            "length_penalty": st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
            "early_stopping": st.sampled_from([True, False, "never"]),
            "forced_bos_token_id": st.integers(3, 60),
            "eos_token_id": st.lists(st.integers(1, 70), min_size=1, max_size=3, unique=True),
            "pad_token_id": st.integers(0, 5),
            "decoder_start_token_id": st.integers(0, 9),
            "suppress_tokens": st.lists(st.integers(3, 70), max_size=3),
        },
    )
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_torch_backend_generates_the_same_text_as_transformers(
    save: Callable[..., Path], generation: dict[str, Any]
) -> None:
    folder = save({**T5, "max_new_tokens": 10, **generation} if "max_length" not in generation else T5 | generation)
    try:
        special = read_generation(folder).special
        answers = generate(load(str(folder)), TEXTS[:2], {})
    except UsageError as error:  # the minimum length exceeds the maximum, or a forced token is suppressed
        assert "min_new_tokens" in str(error) or "both forced and suppressed" in str(error)
        return
    assert answers == find_tokenizer(folder).decode(expected(folder, TEXTS[:2], special))


def test_generation_config_of_a_model_is_restored(save: Callable[..., Path]) -> None:
    model = load(str(save({**T5, "num_beams": 3})))
    before = model.backend.model.generation_config.to_dict()  # type: ignore[attr-defined]
    generate(model, ["a"], {"num_beams": 2})
    assert model.backend.model.generation_config.to_dict() == before  # type: ignore[attr-defined]
    assert load_model(find_base(model.name).folder).generation_config.num_beams == 3

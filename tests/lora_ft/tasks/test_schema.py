"""Schema of a task: bounds of its values, and combinations that are refused."""

from __future__ import annotations

import pytest

from lora_ft.tasks.files import load_task
from tests.lora_ft.tasks.task_files import MakeTask, errors_of


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("name=a/b", "not a name"),
        ("name=../up", "not a name"),
        ("data.split.test=1.0", "less than 1"),
        ("data.limit.train=0", "greater than or equal to 1"),
        ("data.shuffle=true", "unknown key"),
        ("lengths.target=1", "greater than or equal to 2"),
        ("lengths.long_targets=keep", "'error', 'cut' or 'drop'"),
        ("lora.r=0", "greater than or equal to 1"),
        ("lora.lora_dropout=1", "less than or equal to 0.9"),
        ("train.base_dropout=0.999", "less than or equal to 0.9"),
        ("train.learning_rate=1e38", "less than or equal to 3"),
        ("lora.target_modules=''", "name at least one layer"),
        ("lora.target_modules=[q, '']", "name at least one layer"),
        ("lora.rank=8", "unknown key"),
        ("train.num_train_epochs=0", "greater than 0"),
        ("train.lr_scheduler_type=step", "linear, cosine, constant"),
        ("train.warmup_ratio=1", "less than 1"),
        ("train.save_total_limit=0", "greater than or equal to 1"),
        ("generate.top_p=1.5", "less than or equal to 1"),
        ("generate.temperature=0", "greater than or equal to"),
        ("generate.num_beams=2.5", "valid integer"),
        ("generate.num_beams=1000000", "less than or equal to 1000"),
        ("train.max_steps=1e23", "too large"),
        ("train.num_train_epochs=1e300", "less than or equal to"),
        ("train.learning_rate=.nan", "finite number"),
        ("train.weight_decay=1e9999", "finite number"),
        ("train.seed=-1", "greater than or equal to 0"),
        ("train.seed=4294967296", "less than 4294967296"),
        ("train.per_device_train_batch_size=1000000000", "less than or equal to 100000"),
        ("lengths.source=1000000000", "less than or equal to 100000"),
        ("lora.r=1000000000", "less than or equal to 10000"),
        ("lora.lora_alpha=1e18", "less than or equal to"),
        ("lora.loraplus_lr_ratio=1e300", "less than or equal to"),
        ("lora.init_lora_weights=pissa_niter_9999999", "unknown initialization"),
        ("evaluate.bootstrap=1000000000", "less than or equal to 100000"),
        ("card.watts=1e300", "less than or equal to"),
        ("data.split.seed=-1", "greater than or equal to 0"),
        ("evaluate.bootstrap=10", "greater than or equal to 100"),
        ("evaluate.metrics=[rogue]", "unknown metric rogue; use one of rouge, rougeSU4, bleu"),
        ("evaluate.metrics=[]", "at least 1"),
        ("evaluate.metric=rouge", "unknown score; use one of rouge1, "),
        ("evaluate.metric=coverage", "no model is chosen by it"),
        ("train.metric_for_best_model=accurate", "unknown score; use one of rouge1, "),
    ],
)
def test_value_out_of_range_is_reported_by_its_key(make_task: MakeTask, override: str, words: str) -> None:
    errors = errors_of(make_task(), override)
    assert set(errors) == {override.partition("=")[0]}
    assert words in errors[override.partition("=")[0]].problem


def test_learning_rate_of_b_is_bounded_like_that_of_a(make_task: MakeTask) -> None:
    task = make_task(lora={"loraplus_lr_ratio": 1e6})
    assert "lora.loraplus_lr_ratio is 3e+40, more than 3e+37; lower" in str(errors_of(task, "train.learning_rate=3e34"))
    assert load_task(task, ["train.learning_rate=1e30"]).lora.loraplus_lr_ratio == 1e6


def test_metric_without_its_required_setting_is_refused(make_task: MakeTask) -> None:
    errors = errors_of(make_task(), "evaluate.metrics=[rouge, bertscore]")
    assert "bertscore requires bertscore_model" in errors["evaluate"].problem
    errors = errors_of(make_task(evaluate={"language": "de"}), "evaluate.stop_words=true")
    assert "stop_words is for English only (got language de)" in errors["evaluate"].problem


def test_fp16_is_refused_with_the_reason(make_task: MakeTask) -> None:
    error = errors_of(make_task(train={"precision": "fp16"}))["train.precision"]
    assert error.value == "fp16"
    assert all(word in error.problem for word in ("transformers#5651", "65,504", "bf16 or fp32"))


@pytest.mark.parametrize("prompt", ["no column", "{}", "{text", "{text:>8}", "{text!r}", "{{text}}"])
def test_prompt_without_a_plain_column_is_refused(make_task: MakeTask, prompt: str) -> None:
    assert set(errors_of(make_task(prompt=prompt))) == {"prompt"}


def test_task_without_rows_is_refused(make_task: MakeTask) -> None:
    path = make_task(data={"train": None, "validation": None, "test": None})
    assert "set train" in errors_of(path)["data"].problem


def test_hub_data_set_trains_on_its_train_split_by_default(make_task: MakeTask) -> None:
    path = make_task(data={"hub": "someone/rows", "train": None, "validation": None, "test": None})
    assert load_task(path).data.train == "train"


def test_generation_options_are_those_of_the_task_and_the_maximum_length(make_task: MakeTask) -> None:
    assert load_task(make_task()).generation_options() == {"max_new_tokens": 24}
    beams = make_task(generate={"num_beams": 4, "length_penalty": 0.8, "top_k": 50, "do_sample": False})
    # Defaults are returned too, since the base's defaults may differ.
    options = {"num_beams": 4, "length_penalty": 0.8, "top_k": 50, "do_sample": False}
    assert load_task(beams).generation_options() == {"max_new_tokens": 24, **options}
    assert load_task(make_task(generate={"max_new_tokens": 5})).generation_options() == {"max_new_tokens": 5}


@pytest.mark.parametrize("option", ["mbr=8", "temperature=0.7", "top_k=10", "top_p=0.9"])
def test_options_of_sampling_need_sampling(make_task: MakeTask, option: str) -> None:
    set_option = f"generate.{option}"
    problem = str(errors_of(make_task(), set_option, "generate.num_beams=2"))
    assert f"{set_option.partition('=')[0]} has no effect without sampling" in problem
    assert "do_sample and generate.num_beams exclude each other" in str(
        errors_of(make_task(generate={"do_sample": True}), set_option, "generate.num_beams=2")
    )
    load_task(make_task(generate={"do_sample": True}), [set_option])
    load_task(make_task(generate={"do_sample": False}), [set_option])


def test_quoted_words_are_labels(make_task: MakeTask) -> None:
    assert load_task(make_task(), ["labels=['yes', 'no', '1']"]).labels == ["yes", "no", "1"]


def test_number_refuses_a_boolean(make_task: MakeTask) -> None:
    for key in ("train.learning_rate", "train.weight_decay", "generate.temperature", "data.split.test", "lora.r"):
        assert "write a number" in errors_of(make_task(), f"{key}=yes")[key].problem


def test_many_labels_are_checked_in_linear_time(make_task: MakeTask) -> None:
    labels = [f"label{i}" for i in range(10_000)]
    assert load_task(make_task(labels=labels)).labels == labels
    assert "at most 10000 labels" in errors_of(make_task(labels=[*labels, "one more"]))["labels"].problem
    assert "'label7' is listed twice" in errors_of(make_task(labels=[*labels[:9_000], "label7"]))["labels"].problem

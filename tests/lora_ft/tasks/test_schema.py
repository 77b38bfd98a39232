"""Task files: what is refused and how it is said, overrides, paths, presets, and that a saved task comes back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.tasks.files import Fault, TaskFaults, load_task, recipes, save_task
from lora_ft.tasks.schema import Task

MakeTask = Callable[..., Path]


def faults_of(path: Path, *overrides: str) -> dict[str, Fault]:
    with pytest.raises(TaskFaults) as caught:
        load_task(path, overrides)
    return {fault.key: fault for fault in caught.value.faults}


def without(path: Path, key: str) -> Path:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    del content[key]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def with_base(path: Path, base: str) -> Path:
    content = yaml.safe_load(path.read_text(encoding="utf-8")) | {"base": base}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_all_faults_are_reported_at_once_with_key_value_and_remedy(make_task: MakeTask) -> None:
    path = make_task(
        train={"epochs": 3, "learning_rate": -0.5, "per_device_train_batch_size": "many", "optim": "sgd"},
        lengths={"source": 4},
        colour="red",
    )
    faults = faults_of(without(path, "prompt"))
    expected = {
        "prompt": (None, "missing; add it"),
        "colour": ("red", "unknown key; remove it or correct its spelling"),
        "lengths.source": (4, "greater than or equal to 8"),
        "train.epochs": (3, "unknown key; remove it or correct its spelling"),
        "train.learning_rate": (-0.5, "greater than 0"),
        "train.per_device_train_batch_size": ("many", "valid integer"),
        "train.optim": ("sgd", "adamw_torch, adamw_torch_fused, adafactor"),
    }
    assert faults.keys() == expected.keys()
    for key, (value, remedy) in expected.items():
        assert faults[key].value == value
        assert remedy in faults[key].problem
        assert str(faults[key]).startswith(f"{key} = {value!r}: ")


def test_the_error_names_the_file_the_first_fault_and_how_to_see_the_others(make_task: MakeTask) -> None:
    path = make_task(train={"seed": "x", "weight_decay": -1})
    with pytest.raises(TaskFaults) as caught:
        load_task(path)
    assert str(caught.value).startswith(f"{path}: {caught.value.faults[0]} (and 1 more)")
    assert f"lora-ft validate {path}" in caught.value.remedy
    assert isinstance(caught.value, UsageError) and caught.value.exit_code == 2


def test_a_single_fault_does_not_speak_of_more(make_task: MakeTask) -> None:
    with pytest.raises(TaskFaults) as caught:
        load_task(make_task(train={"seed": "x"}))
    assert "more" not in str(caught.value) and not caught.value.remedy


def test_a_long_value_is_shortened() -> None:
    assert str(Fault("prompt", "x" * 500, "wrong")) == f"prompt = '{'x' * 56}...: wrong"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("name=a/b", "pattern"),
        ("name=../up", "pattern"),
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
        ("train.metric_for_best_model=accurate", "unknown score; use one of rouge1, "),
    ],
)
def test_a_value_out_of_range_is_named_by_its_key(make_task: MakeTask, override: str, words: str) -> None:
    faults = faults_of(make_task(), override)
    assert set(faults) == {override.partition("=")[0]}
    assert words in faults[override.partition("=")[0]].problem


def test_the_rate_of_b_is_bounded_like_that_of_a(make_task: MakeTask) -> None:
    task = make_task(lora={"loraplus_lr_ratio": 1e6})
    assert "lora.loraplus_lr_ratio is 3e+40, more than 3e+37; lower" in str(faults_of(task, "train.learning_rate=3e34"))
    assert load_task(task, ["train.learning_rate=1e30"]).lora.loraplus_lr_ratio == 1e6


def test_scores_that_need_more_than_they_are_given_are_faults(make_task: MakeTask) -> None:
    faults = faults_of(make_task(), "evaluate.metrics=[rouge, bertscore]")
    assert "bertscore needs bertscore_model" in faults["evaluate"].problem
    faults = faults_of(make_task(evaluate={"language": "de"}), "evaluate.stop_words=true")
    assert "a list for English only" in faults["evaluate"].problem


def test_fp16_is_refused_with_its_reason(make_task: MakeTask) -> None:
    fault = faults_of(make_task(train={"precision": "fp16"}))["train.precision"]
    assert fault.value == "fp16"
    assert all(word in fault.problem for word in ("transformers#5651", "65,504", "bf16 or fp32"))


@pytest.mark.parametrize("prompt", ["no column", "{}", "{text", "{text:>8}", "{text!r}", "{{text}}"])
def test_a_prompt_without_a_plain_column_is_refused(make_task: MakeTask, prompt: str) -> None:
    assert set(faults_of(make_task(prompt=prompt))) == {"prompt"}


def test_a_task_without_any_rows_is_refused(make_task: MakeTask) -> None:
    path = make_task(data={"train": None, "validation": None, "test": None})
    assert "set train" in faults_of(path)["data"].problem


def test_a_hub_data_set_is_trained_on_its_train_split_by_default(make_task: MakeTask) -> None:
    path = make_task(data={"hub": "someone/rows", "train": None, "validation": None, "test": None})
    assert load_task(path).data.train == "train"


def test_overrides_reach_nested_keys_and_are_read_as_yaml(make_task: MakeTask) -> None:
    task = load_task(
        make_task(train={"max_steps": 7}),
        [
            "generate.num_beams=4",  # a section that the file has not
            "data.split.validation=0.25",
            "train.learning_rate=2e-3",
            "train.max_steps=null",
            "train.report_to=[tensorboard, mlflow]",
            "data.skip_empty=true",
            "prompt='a = {text}'",
            "train.seed=1",
            "train.seed=2",
        ],
    )
    assert task.generate.num_beams == 4
    assert task.data.split is not None and task.data.split.validation == 0.25
    assert task.train.learning_rate == 0.002 and task.train.max_steps is None
    assert task.train.report_to == ["tensorboard", "mlflow"]
    assert task.data.skip_empty is True
    assert task.prompt == "a = {text}"
    assert task.train.seed == 2
    assert task.train.num_train_epochs == 2  # what is not named stays as the file has it


@pytest.mark.parametrize(
    "override", ["train.seed", "=3", "train..seed=3", ".seed=3", "train.=3", "train.report_to=[a", "name.first=x"]
)
def test_an_override_that_is_no_pair_is_refused_by_itself(make_task: MakeTask, override: str) -> None:
    with pytest.raises(UsageError, match="--set") as caught:
        load_task(make_task(), [override])
    assert not isinstance(caught.value, TaskFaults)


def test_paths_start_from_the_file_and_overrides_from_the_current_folder(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    path = make_task()
    monkeypatch.chdir(here)
    plain = load_task(path).data
    assert plain.root == path.parent and plain.train == "train.jsonl"
    data = load_task(path, ["data.train=mine.jsonl", "data.validation=[a.jsonl, b/*.jsonl]"]).data
    assert data.train == str(here / "mine.jsonl")
    assert data.validation == [str(here / "a.jsonl"), str(here / "b/*.jsonl")]
    assert data.test == "test.jsonl" and data.root == path.parent
    assert load_task(path, ["data.root=rows"]).data.root == here / "rows"
    assert load_task(path, [f"data.train={tmp_path}/x.jsonl"]).data.train == f"{tmp_path}/x.jsonl"


def test_rows_start_from_a_data_root_that_is_overridden_too(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_task()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for overrides in (["data.root=../rows", "data.train=a.jsonl"], ["data.train=a.jsonl", "data.root=../rows"]):
        data = load_task(path, overrides).data
        assert data.root is not None and data.train == "a.jsonl"
        assert (data.root / data.train).resolve() == (tmp_path / "rows" / "a.jsonl").resolve()


def test_names_of_hub_splits_are_no_paths(make_task: MakeTask) -> None:
    assert load_task(make_task(), ["data.hub=someone/rows", "data.train=dev"]).data.train == "dev"


def test_a_schema_file_starts_from_where_it_is_named_and_fhir_is_none(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_task(evaluate={"json_schema": "schema.json"})
    assert load_task(path).evaluate.json_schema == str(path.parent / "schema.json")
    assert load_task(path, ["evaluate.json_schema=other.json"]).evaluate.json_schema == str(tmp_path / "other.json")
    assert load_task(path, ["evaluate.json_schema=fhir-r4"]).evaluate.json_schema == "fhir-r4"


def test_data_root_starts_from_the_task_file(make_task: MakeTask, tmp_path: Path) -> None:
    path = make_task(data={"root": "rows"})
    assert load_task(path).data.root == path.parent / "rows"
    assert load_task(make_task(data={"root": str(tmp_path)})).data.root == tmp_path


def test_a_base_beside_the_task_file_is_found_and_a_hub_name_is_left_alone(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_base(make_task(), "bases/mine")
    assert load_task(path).base == "bases/mine"
    (path.parent / "bases" / "mine").mkdir(parents=True)
    assert load_task(path).base == str(path.parent / "bases" / "mine")
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_task(path, ["base=own"]).base == str(tmp_path / "own")
    assert load_task(path, ["base=offline"]).base == "offline"
    assert load_task(with_base(path, "./later")).base == str(path.parent / "later")


@pytest.mark.parametrize(
    ("preset", "r", "alpha", "targets"),
    [("tiny", 8, 16, ["q", "v"]), ("default", 16, 32, "all-linear"), ("large", 64, 64, "all-linear")],
)
def test_a_preset_fills_in_what_is_not_given(
    make_task: MakeTask, preset: str, r: int, alpha: int, targets: str | list[str]
) -> None:
    lora = load_task(make_task(lora={"preset": preset})).lora
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (r, alpha, targets)
    own = load_task(make_task(lora={"preset": preset, "r": 5, "target_modules": "o"})).lora
    assert (own.r, own.lora_alpha, own.target_modules) == (5, alpha, ["o"])


def test_without_a_lora_section_the_default_preset_holds(make_task: MakeTask) -> None:
    lora = load_task(without(make_task(), "lora")).lora
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (16, 32, "all-linear")


@pytest.mark.parametrize(
    ("given_", "read"),
    [("q,v", ["q", "v"]), (" q , v ", ["q", "v"]), (["q", "wo"], ["q", "wo"]), ("all-linear", "all-linear")],
)
def test_target_modules_are_a_list_of_names_or_all_linear(
    make_task: MakeTask, given_: str | list[str], read: str | list[str]
) -> None:
    assert load_task(make_task(lora={"target_modules": given_})).lora.target_modules == read


def test_generation_options_hold_what_the_task_sets_and_the_length(make_task: MakeTask) -> None:
    assert load_task(make_task()).generation_options() == {"max_new_tokens": 24}
    beams = make_task(generate={"num_beams": 4, "length_penalty": 0.8, "top_k": 50, "do_sample": False})
    # also what is the default: the base may say otherwise
    own = {"num_beams": 4, "length_penalty": 0.8, "top_k": 50, "do_sample": False}
    assert load_task(beams).generation_options() == {"max_new_tokens": 24, **own}
    assert load_task(make_task(generate={"max_new_tokens": 5})).generation_options() == {"max_new_tokens": 5}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: caf\xe9\n", "not UTF-8 (byte 9)"),
        (b"name: [a\n", "is not YAML"),
        (b"name: a\n  base: b\n", "is not YAML"),
        (b"- name: a\n", "is not a task"),
        (b"just words\n", "is not a task"),
        (b"", "is not a task"),
    ],
)
def test_a_file_that_is_no_task_is_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_task(path)
    assert str(path) in caught.value.message and words in caught.value.message


def test_a_byte_order_mark_is_no_fault(make_task: MakeTask) -> None:
    path = make_task()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_task(path).name == "tiny"


def test_recipes_are_found_by_name_and_named_where_none_is_found(tmp_path: Path) -> None:
    assert load_task("dialogue-summary").name == "dialogue-summary"
    with pytest.raises(UsageError) as caught:
        load_task(tmp_path / "none.yaml")
    assert all(name in caught.value.remedy for name in recipes())


def test_a_file_goes_before_a_recipe_of_its_name(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dialogue-summary").write_bytes(make_task().read_bytes())
    monkeypatch.chdir(tmp_path)
    assert load_task("dialogue-summary").name == "tiny"


def test_a_saved_task_has_every_default_filled_in(make_task: MakeTask, tmp_path: Path) -> None:
    save_task(load_task(make_task()), tmp_path / "saved.yaml")
    content = yaml.safe_load((tmp_path / "saved.yaml").read_text(encoding="utf-8"))
    assert set(content) == set(Task.model_fields) - {"labels"}  # without any, a task has none
    assert content["lora"]["target_modules"] == ["q", "v"] and content["train"]["lr_scheduler_type"] == "linear"
    assert content["generate"] == {"constrained": True}  # the rest is as the base says
    assert content["evaluate"]["use_stemmer"] is True


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"), max_size=30)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True)
TASKS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "name": NAMES,
        "prompt": st.tuples(TEXT, TEXT).map("{text}".join),
        "data": st.fixed_dictionaries(
            {"train": st.one_of(NAMES, st.lists(NAMES, min_size=1))},
            optional={
                "target": TEXT,
                "references": TEXT,
                "split": st.fixed_dictionaries({"test": st.floats(0, 0.99)}),
                "limit": st.fixed_dictionaries({"train": st.integers(1, 10**9)}),
            },
        ),
    },
    optional={
        "lora": st.fixed_dictionaries(
            {"preset": st.sampled_from(["tiny", "default", "large"])},
            optional={"r": st.integers(1, 999), "target_modules": st.lists(NAMES, min_size=1)},
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.floats(1e-12, 1e3),
                "eval_every": st.one_of(st.just("epoch"), st.integers(1, 10**9)),
                "compile": st.sampled_from(["on", "off", "auto"]),
                "report_to": st.lists(st.sampled_from(["tensorboard", "wandb"])),
            },
        ),
        "generate": st.fixed_dictionaries({"length_penalty": st.floats(-9, 9)}),
    },
)


@settings(max_examples=30, deadline=None)
@given(content=TASKS)
def test_a_saved_task_comes_back_the_same(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    task = Task.model_validate(content)
    task.data.root = folder
    save_task(task, folder / "saved.yaml")
    assert load_task(folder / "saved.yaml") == task


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("labels=[yes, no]", "labels.0", 'YAML reads yes as true; quote it: "yes"'),
        ("labels=[0, 1]", "labels.0", 'YAML reads 0 as a number; quote it: "0"'),
        ("labels=[a, 1.50]", "labels.1", 'YAML reads 1.50 as a number; quote it: "1.50"'),
        ("labels=[a, On]", "labels.1", 'YAML reads On as true; quote it: "On"'),
        ("evaluate.language=no", "evaluate.language", 'YAML reads no as false; quote it: "no"'),
        ("card.language=[en, no]", "card.language.1", 'quote it: "no"'),
        ("name=2024", "name", 'quote it: "2024"'),
        ("data.target=1", "data.target", 'quote it: "1"'),
        ("data.train=[1, b.jsonl]", "data.train.0", 'quote it: "1"'),
        ("lora.new_tokens=[on]", "lora.new_tokens.0", 'quote it: "on"'),
    ],
)
def test_text_that_yaml_takes_for_something_else_must_be_quoted(
    make_task: MakeTask, override: str, key: str, words: str
) -> None:
    faults = faults_of(make_task(), override)
    assert words in faults[key].problem
    quoted = override.replace("[a, 1.50]", "[a, '1.50']")
    assert quoted  # and in the file, with its line:
    path = make_task()
    path.write_text(path.read_text(encoding="utf-8") + "labels: [Yes, 'no']\n", encoding="utf-8")
    fault = faults_of(path)["labels.0"]
    assert 'quote it: "Yes"' in fault.problem and fault.line == len(path.read_text().splitlines())
    assert str(fault).endswith(f"(line {fault.line})")


def test_quoted_words_are_labels(make_task: MakeTask) -> None:
    assert load_task(make_task(), ["labels=['yes', 'no', '1']"]).labels == ["yes", "no", "1"]


def test_numbers_are_not_written_as_truth_values(make_task: MakeTask) -> None:
    for key in ("train.learning_rate", "train.weight_decay", "generate.temperature", "data.split.test", "lora.r"):
        assert "write a number" in faults_of(make_task(), f"{key}=yes")[key].problem


@pytest.mark.parametrize("key", ["data.root", "base", "evaluate.json_schema"])
def test_the_home_of_nobody_is_refused(make_task: MakeTask, key: str) -> None:
    with pytest.raises(UsageError, match="~nosuchuser is the home folder of nobody"):
        load_task(make_task(), [f"{key}=~nosuchuser/x"])


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "fifo", "is not a file"),
        (tmp_path / ("x" * 5000), "no task file"),
        ("a\0b", "no task file"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            load_task(path)
        assert len(caught.value.message) < 200


def test_no_message_holds_a_whole_value(make_task: MakeTask) -> None:
    path = make_task()
    huge = "[" + ", ".join(["[" + "'xxxxxxxxxx', " * 50 + "]"] * 300) + "]"
    for override in (
        f"train.seed={huge}",
        f"lengths={huge}",
        f"labels={huge}",
        f"train.optim={'y' * 10_000}",
        f"labels=['{'z' * 9_000} ', b]",
        f"{'k' * 5_000}=1",
        f"prompt={'{' * 9_000}",
    ):
        with pytest.raises(UsageError) as caught:
            load_task(path, [override])
        assert len(str(caught.value)) < 1_000


def test_many_labels_are_checked_in_linear_time(make_task: MakeTask) -> None:
    labels = [f"label{i}" for i in range(10_000)]
    assert load_task(make_task(labels=labels)).labels == labels
    assert "at most 10000 labels" in faults_of(make_task(labels=[*labels, "one more"]))["labels"].problem
    assert "'label7' stands there twice" in faults_of(make_task(labels=[*labels[:9_000], "label7"]))["labels"].problem

"""Shipped recipes: task files that load, and rows suited for training and scoring."""

from __future__ import annotations

import datetime
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lora_ft.data.splits import Splits, load_splits
from lora_ft.evaluation.metrics.structured import SAME_VALUE, VALID, structured
from lora_ft.models.bases import find_base
from lora_ft.tasks.evaluate import FHIR_R4
from lora_ft.tasks.files import load_task, recipe_file, recipes
from lora_ft.tasks.schema import SPLITS, Task
from lora_ft.validate import validate

BENCHMARKS = sorted((Path(__file__).parents[2] / "benchmarks" / "tasks").glob("*.yaml"))
EXPORT = recipe_file("groupchat").with_suffix("") / "result.json"


@pytest.fixture(scope="module")
def example() -> tuple[Task, Splits]:
    task = load_task("dialogue-summary")
    return task, load_splits(task)


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_loads_under_its_own_name(name: str) -> None:
    assert load_task(name).name == name


@pytest.mark.parametrize("name", recipes())
def test_the_card_of_a_recipe_has_the_license_of_its_rows(name: str) -> None:
    ours = "(Apache-2.0)" in recipe_file(name).read_text(encoding="utf-8")
    card = load_task(name).card
    assert (card.license, card.language) == (("apache-2.0", ["en"]) if ours else (None, []))


def test_the_example_is_among_the_recipes() -> None:
    assert "dialogue-summary" in recipes()


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_task_of_the_benchmarks_loads(path: Path) -> None:
    assert load_task(path).name == path.stem


def test_tasks_of_the_benchmarks_with_several_references_are_scored_by_bleu_and_chrf() -> None:
    tasks = [task for task in map(load_task, BENCHMARKS) if task.data.references]
    assert {task.name for task in tasks} >= {"jfleg", "e2e"}
    assert all({"bleu", "chrf"} <= set(task.evaluate.metrics) for task in tasks)


def test_the_benchmarks_have_tasks() -> None:
    assert BENCHMARKS


def test_the_example_has_enough_rows_in_every_split(example: tuple[Task, Splits]) -> None:
    counts = [len(example[1][name]) for name in SPLITS]
    assert sum(counts) >= 240 and all(count >= 30 for count in counts)


def test_row_counts_in_comments_of_recipes_are_correct(example: tuple[Task, Splits]) -> None:
    text = recipe_file("dialogue-summary").read_text(encoding="utf-8")
    for name in SPLITS:
        stated = re.search(rf"^  {name}: {name}\.jsonl # ([\d,]+)", text, re.MULTILINE)
        assert stated is not None and int(stated[1]) == len(example[1][name])
    total = sum(len(example[1][name]) for name in SPLITS)
    assert f"The {total} dialogues" in text


def test_ids_of_example_rows_are_unique(example: tuple[Task, Splits]) -> None:
    ids = [row.row["id"] for name in SPLITS for row in example[1][name]]
    assert len(set(ids)) == len(ids) and example[1].overlap == 0


def test_t5_can_read_and_write_every_character_of_the_example(example: tuple[Task, Splits]) -> None:
    for name in SPLITS:
        for row in example[1][name]:
            text = row.row["dialogue"] + row.row["summary"]
            assert text.isascii() and not set(text) & set("{}<>~"), row.row["id"]
            assert "\n" not in row.target


def test_the_qa_recipe_has_the_settings_of_the_guide() -> None:
    task = load_task("qa")
    assert (task.base, task.data.hub, task.prompt) == (
        "google/flan-t5-base",
        "yahoo_answers_qa",
        "Please answer this question: {question}",
    )
    assert task.data.split is not None and task.data.split.test == 0.3
    assert (task.lengths.source, task.lengths.target) == (128, 512)
    train = task.train
    assert (train.learning_rate, train.per_device_train_batch_size, train.weight_decay) == (3e-4, 8, 0.01)
    assert (train.num_train_epochs, train.save_total_limit, task.evaluate.use_stemmer) == (3, 3, True)
    assert load_task("qa", ["method=full"]).method == "full"


def test_the_qa_recipe_accepts_own_rows(tmp_path: Path) -> None:
    """Run the command in the comment of the recipe."""
    command = re.search(r"lora-ft train qa (--set base=offline .*)", recipe_file("qa").read_text(encoding="utf-8"))
    assert command is not None
    rows = [{"question": f"Why {i}?", "answer": f"Because {i}."} for i in range(100)]
    (tmp_path / "my-rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    overrides = [word for word in command[1].split() if word != "--set"]
    splits = load_splits(load_task("qa", [word.replace("my-rows", f"{tmp_path}/my-rows") for word in overrides]))
    assert [len(splits[name]) for name in SPLITS] == [68, 2, 30]


def grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9']+", text.lower())
    return set(zip(*(words[i:] for i in range(5)), strict=False))


@pytest.mark.parametrize("column", ["dialogue", "summary"])
def test_splits_of_the_example_share_no_near_duplicates(example: tuple[Task, Splits], column: str) -> None:
    grams_by_split = {name: [(row.row["id"], grams(row.row[column])) for row in example[1][name]] for name in SPLITS}
    assert all(five_grams for name in SPLITS for _, five_grams in grams_by_split[name])
    alike = [
        (id_a, id_b)
        for a, b in itertools.combinations(SPLITS, 2)
        for (id_a, grams_a), (id_b, grams_b) in itertools.product(grams_by_split[a], grams_by_split[b])
        if len(grams_a & grams_b) / min(len(grams_a), len(grams_b)) >= 0.2
    ]
    assert alike == []


def test_the_summaries_of_the_example_are_shorter_than_its_dialogues(example: tuple[Task, Splits]) -> None:
    for name in SPLITS:
        for row in example[1][name]:
            assert len(row.row["summary"]) < 0.6 * len(row.row["dialogue"]), row.row["id"]


@pytest.fixture(scope="module")
def export() -> dict[str, Any]:
    return json.loads(EXPORT.read_text(encoding="utf-8"))


def test_the_group_chat_is_a_group_of_messages_with_increasing_ids(export: dict[str, Any]) -> None:
    ids = [message["id"] for message in export["messages"]]
    assert len(ids) >= 100 and all(a < b for a, b in itertools.pairwise(ids))
    assert export["type"] == "private_group" and {message["type"] for message in export["messages"]} == {
        "message",
        "service",
    }


def test_the_group_chat_runs_forward_in_time_and_its_two_clocks_agree(export: dict[str, Any]) -> None:
    dates = [datetime.datetime.fromisoformat(message["date"]) for message in export["messages"]]
    seconds = [int(message["date_unixtime"]) for message in export["messages"]]
    assert dates == sorted(dates) and seconds == sorted(seconds)


def test_replies_in_the_group_chat_are_to_earlier_messages(export: dict[str, Any]) -> None:
    earlier: set[int] = set()
    replies = 0
    for message in export["messages"]:
        if "reply_to_message_id" in message:
            replies += 1
            assert message["reply_to_message_id"] in earlier
        earlier.add(message["id"])
    assert replies > 0


def test_the_texts_of_the_group_chat_are_those_of_their_parts(export: dict[str, Any]) -> None:
    for message in export["messages"]:
        parts = message["text"] if isinstance(message["text"], list) else [message["text"]]
        text = "".join(part if isinstance(part, str) else part["text"] for part in parts)
        assert text == "".join(entity["text"] for entity in message["text_entities"]), message["id"]


@pytest.fixture(scope="module")
def clinical() -> tuple[Task, Splits]:
    task = load_task("clinical-fhir")
    return task, load_splits(task)


def test_every_resource_of_the_clinical_notes_is_valid(clinical: tuple[Task, Splits]) -> None:
    task, splits = clinical
    assert task.evaluate.json_schema == FHIR_R4
    for name in SPLITS:
        targets = [row.target for row in splits[name]]
        scores = structured(targets, [[target] for target in targets], FHIR_R4)
        assert scores[VALID].min() == scores[SAME_VALUE].min() == 100


def test_every_resource_of_the_clinical_notes_follows_the_schema(clinical: tuple[Task, Splits]) -> None:
    schema = clinical[0].generate.json_schema
    validator = pytest.importorskip("jsonschema").Draft202012Validator(schema)
    assert isinstance(schema, dict)
    order = {name: list(part.get("properties", {})) for name, part in schema["$defs"].items()}
    for name in SPLITS:
        for row in clinical[1][name]:
            resource = row.row["resource"]
            assert validator.is_valid(resource), row.target
            assert sorted(resource, key=order[resource["resourceType"]].index) == list(resource)


def test_clinical_notes_have_every_kind_in_every_split_and_each_person_in_one(clinical: tuple[Task, Splits]) -> None:
    _, splits = clinical
    people: list[str] = []
    for name in SPLITS:
        kinds = [row.row["resource"]["resourceType"] for row in splits[name]]
        assert len(set(kinds)) == 7 and min(map(kinds.count, set(kinds))) >= 6
        for row in splits[name]:
            subject = row.row["resource"].get("subject") or row.row["resource"].get("patient")
            name_of_patient = row.row["resource"].get("name", [{}])[0]
            people.append(
                subject["display"] if subject else f"{name_of_patient['given'][0]} {name_of_patient['family']}"
            )
    assert len(set(people)) == len(people) and splits.overlap == 0


def test_counts_in_the_clinical_recipe_are_correct(clinical: tuple[Task, Splits]) -> None:
    text = recipe_file("clinical-fhir").read_text(encoding="utf-8")
    for name in SPLITS:
        stated = re.search(rf"^  {name}: {name}\.jsonl # ([\d,]+)", text, re.MULTILINE)
        assert stated is not None and stated[1] == f"{len(clinical[1][name]):,}"
    assert f"The {sum(len(clinical[1][name]) for name in SPLITS):,} notes" in text


def test_the_group_chat_is_split_by_session_into_people_who_speak_in_every_part(export: dict[str, Any]) -> None:
    task = load_task("group-chat")
    splits = load_splits(task)
    people = [{example.row["sender"] for example in splits[name]} for name in SPLITS]
    assert people == [{"Brannagh", "Lumi", "Oswin", "Tuck", "Zsófi"}] * 3
    assert splits.overlap == 0 and task.generate.do_sample
    spoken = [message for message in export["messages"] if message["type"] == "message"]
    first_messages = 3  # the first message of each split has no context
    usable = [message for message in spoken if message["text"] and "forwarded_from" not in message]
    assert sum(len(splits[name]) for name in SPLITS) == len(usable) - first_messages
    assert f"The {len(spoken)} messages" in recipe_file("group-chat").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tickets() -> tuple[Task, Splits]:
    task = load_task("text-classification")
    return task, load_splits(task)


def test_labels_of_the_tickets_are_balanced_in_every_split(
    tickets: tuple[Task, Splits],
) -> None:
    task, splits = tickets
    assert [len(splits[name]) for name in SPLITS] == [248, 40, 80]
    for name in SPLITS:
        counts = Counter(example.target for example in splits[name])
        assert sorted(counts) == task.known_labels and len(set(counts.values())) == 1
    assert all(label in task.prompt for label in task.known_labels)


def test_tickets_are_distinct_and_in_the_vocabulary(tickets: tuple[Task, Splits]) -> None:
    messages = [example.row["message"] for name in SPLITS for example in tickets[1][name]]
    ids = [example.row["id"] for name in SPLITS for example in tickets[1][name]]
    assert len(set(ids)) == len(ids) == 368
    assert all(text.isascii() and not set(text) & set("{}<>~\n\t") for text in messages)
    words = [set(re.findall(r"[a-z0-9']+", text.lower())) for text in messages]
    for a, b in itertools.combinations(words, 2):
        assert len(a & b) / len(a | b) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recipes() if load_task(name).data.hub is None])
def test_recipes_cause_no_avoidable_warnings(name: str) -> None:
    report = validate(name, ["base=offline"])
    machine = (find_base("offline").notice, "training needs about")
    counted = (
        "left out: 1 (1 forwarded)"  # one of the chat's messages was forwarded, so that readers see what comes of it
    )
    assert report.errors == []
    assert [warning for warning in report.warnings if not warning.startswith(machine) and counted not in warning] == []

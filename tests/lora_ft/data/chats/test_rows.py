"""Chats as rows of a task: columns, locations, splits by session or by file, and real group chats."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.chats.formats import read_chats
from lora_ft.data.chats.sessions import sessions_of, turns
from lora_ft.data.splits import Splits, load_splits
from lora_ft.tasks.files import InvalidTaskError, load_task, save_task
from lora_ft.tasks.schema import SPLITS, Task

MakeTask = Callable[..., Path]
PROMPT = "Continue writing the following text.\n\n{context}"


def write_chat(file: Path, times: list[int], people: str = "AB") -> Path:
    messages = [
        {"id": i, "type": "message", "date_unixtime": str(time), "from": people[i % len(people)], "text": f"text {i}"}
        for i, time in enumerate(times)
    ]
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"name": "Garden", "messages": messages}))
    return file


@pytest.fixture
def chat_task(make_task: MakeTask, tmp_path: Path) -> Callable[..., Task]:
    """A task over one chat of ten sessions of four messages; keyword arguments are of its data section."""
    write_chat(tmp_path / "task-tiny" / "result.json", [day * 86400 + i for day in range(10) for i in range(4)])

    def make(chat: dict[str, Any] | None = None, **data: Any) -> Task:
        source = {"train": "result.json", "validation": None, "test": None, "target": "response"}
        return load_task(make_task(prompt=PROMPT, data={**source, "chat": chat or {}, **data}))

    return make


def test_a_message_becomes_a_row(chat_task: Callable[..., Task]) -> None:
    first = load_splits(chat_task()).train[1]
    assert first.prompt == "Continue writing the following text.\n\nA: text 0\nB: text 1"
    assert first.target == "A: text 2" and first.references == ("A: text 2",)
    assert first.row == {"context": "A: text 0\nB: text 1", "response": "A: text 2", "sender": "A"}


def test_whole_sessions_are_cut_off(chat_task: Callable[..., Task]) -> None:
    task = chat_task(split={"validation": 0.1, "test": 0.2})
    splits = load_splits(task)
    counts = {name: len(splits[name]) for name in SPLITS}
    assert counts == {"train": 27, "validation": 3, "test": 7}  # of 28, 4 and 8, the first of each without a context
    texts = {
        name: {line for e in splits[name] for line in (*e.row["context"].split("\n"), e.target)} for name in SPLITS
    }
    assert not any(a & b for a, b in itertools.combinations(texts.values(), 2))
    assert load_splits(task, ["test"]).test == splits.test


def test_settings_are_heeded(chat_task: Callable[..., Task]) -> None:
    assert len(load_splits(chat_task({"keep": 6})).train) == 5
    assert load_splits(chat_task({"context": 1})).train[5].row["context"] == "B: text 5"
    assert len(load_splits(chat_task({"before": 0})).train) == 30
    assert all(len(e.row["context"].split("\n")) == 10 for e in load_splits(chat_task({"gap_minutes": 9999})).train[9:])
    cut_short = load_splits(chat_task({"gap_minutes": 9999, "characters": 80})).train
    assert max(len(example.row["context"]) for example in cut_short) <= 80
    assert not {"A", "B"} & {example.row["sender"] for example in load_splits(chat_task({"anonymize": True})).train}


def test_each_file_is_a_chat_of_its_own(chat_task: Callable[..., Task], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_chat(tmp_path / "task-tiny" / "more" / f"{name}.json", [0, 1, 2], people=name)
    rows = load_splits(chat_task(train="more/*.json")).train
    assert [(e.row["sender"], e.row["context"].count(e.row["sender"])) for e in rows] == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("b", 2),
    ]


def test_section_is_read_back_from_a_saved_task(chat_task: Callable[..., Task], tmp_path: Path) -> None:
    task = chat_task({"only": ["Garden"], "gap_minutes": 90})
    save_task(task, tmp_path / "task-tiny" / "saved.yaml")
    assert load_task(tmp_path / "task-tiny" / "saved.yaml").data == task.data


def test_the_target_of_chats_is_the_response(make_task: MakeTask, tmp_path: Path) -> None:
    path = make_task(prompt=PROMPT)
    loaded = load_task(path, ["data={train: x.json, chat: {}}"])
    assert loaded.data.target == "response"
    assert loaded.chat_settings() == {"context": 10, "characters": 1500}
    assert load_task(path).chat_settings() is None


def test_faults(chat_task: Callable[..., Task], make_task: MakeTask, tmp_path: Path) -> None:
    with pytest.raises(InvalidTaskError, match="chat reads local files; remove hub"):
        load_task(make_task(data={"hub": "name", "chat": {}}))
    with pytest.raises(InvalidTaskError, match=r"data\.chat\.gap = 3: unknown key"):
        load_task(make_task(data={"chat": {"gap": 3}}))
    with pytest.raises(UsageError, match=r"data\.train: no file .*gone\.json"):
        load_splits(chat_task(train="gone.json"))
    write_chat(tmp_path / "task-tiny" / "lone.json", [0])
    with pytest.raises(UsageError, match=r"data\.train: lone\.json has no message with an earlier message"):
        load_splits(chat_task(train="lone.json"))
    (tmp_path / "task-tiny" / "cut.json").write_text('{"messages": [')
    with pytest.raises(LoraFtError, match=r"cut\.json, after 0 objects, is cut off"):
        load_splits(chat_task(train="cut.json"))


def write_marked(file: Path) -> Path:
    kinds: list[dict[str, Any]] = [{}, {"forwarded_from": "News"}, {"via_bot": "@gif"}, {}, {"from": "Combot"}, {}]
    messages = [
        {"id": i, "type": "message", "date_unixtime": str(i), "from": "AB"[i % 2], "text": f"text {i}", **kind}
        for i, kind in enumerate(kinds)
    ]
    file.write_text(json.dumps({"name": "Garden", "messages": messages}))
    return file


@pytest.mark.parametrize(
    ("chat", "excluded"),
    [
        ({}, "0345"),
        ({"forwarded": True}, "01345"),
        ({"bots": True}, "02345"),
        ({"leave_out": ["Combot"]}, "035"),
        ({"leave_out": ["B"], "bots": True, "forwarded": True}, "024"),
    ],
)
def test_forwards_bots_and_named_people_are_left_out(
    chat_task: Callable[..., Task], tmp_path: Path, chat: dict[str, Any], excluded: str
) -> None:
    write_marked(tmp_path / "task-tiny" / "result.json")
    rows = load_splits(chat_task(chat)).train
    assert [row.target[-1] for row in rows] == list(excluded[1:])


def test_names_match_however_their_accents_are_encoded(chat_task: Callable[..., Task], tmp_path: Path) -> None:
    people, chat = ["Ana", "Jose\u0301", "Ben"], "Caf\u00e9"
    file = tmp_path / "task-tiny" / "result.json"
    messages = [
        {"id": i, "type": "message", "date_unixtime": str(i), "from": people[i % 3], "text": f"text {i}"}
        for i in range(9)
    ]
    file.write_text(json.dumps({"name": chat, "messages": messages}))
    rows = load_splits(chat_task({"leave_out": ["Jos\u00e9"], "only": ["Cafe\u0301"]})).train
    assert {row.row["sender"] for row in rows} == {"Ana", "Ben"}


def test_unknown_name_in_leave_out_is_refused(chat_task: Callable[..., Task]) -> None:
    with pytest.raises(
        UsageError, match=r"data\.chat\.leave_out has names that are not in these chats: Bot; spell names as"
    ):
        load_splits(chat_task({"leave_out": ["A", "Bot"]}))


def test_pages_of_a_chat_are_read_once(chat_task: Callable[..., Task], tmp_path: Path) -> None:
    task = chat_task(train="message_*.json")
    for number in (1, 2):
        messages = [{"sender_name": "AB"[i % 2], "timestamp_ms": i, "content": f"{number} {i}"} for i in range(3)]
        content = {"participants": [], "title": "x", "messages": messages}
        (tmp_path / "task-tiny" / f"message_{number}.json").write_text(json.dumps(content))
    assert len(load_splits(task).train) == 5


@pytest.fixture(scope="module")
def real(shared_data: Path) -> Splits:
    folder = shared_data / "groupchat"
    if not folder.is_dir():
        pytest.skip("the group chats are not there")
    return load_splits(load_task("benchmarks/tasks/groupchat.yaml", [f"data.root={folder}", "data.limit={}"]))


def test_every_message_of_the_real_chats_is_a_row_but_the_first(shared_data: Path, real: Splits) -> None:
    for split, name, files in (("train", "train", 24), ("validation", "dev", 10), ("test", "test", 10)):
        exports = sorted((shared_data / "groupchat").glob(f"{name}-*.json"))
        spoken = sum(
            bool(message["text"].strip()) for file in exports for message in json.loads(file.read_text())["messages"]
        )
        assert len(exports) == files and len(real[split]) == spoken - files


def test_splits_of_real_chats_share_no_context(real: Splits) -> None:
    assert real.overlap == 0
    contexts = [{e.row["context"] for e in real[name] if e.row["context"].count("\n") > 1} for name in SPLITS]
    assert all(not a & b for a, b in itertools.combinations(contexts, 2))


def test_the_replies_of_the_real_chats_are_used(shared_data: Path) -> None:
    """A reply to something said more than ten messages before has it in its context all the same."""
    files = sorted((shared_data / "groupchat").glob("test-*.json"))
    if not files:
        pytest.skip("the group chats are not there")
    file = files[2]  # one session, already sorted
    ((name, messages),) = read_chats(file).items()
    place = {message.id: i for i, message in enumerate(messages)}
    first = {
        turn.response.id: turn.context[0].id for turn in turns(sessions_of(name, messages, 7200), context=10, before=5)
    }
    far = {
        message.id: message.reply_to for i, message in enumerate(messages) if i - place.get(message.reply_to, i) > 10
    }
    assert len(far) > 50 and far == {number: first[number] for number in far}

"""Telegram Desktop's JSON exports: texts, replies, topics, accounts and repaired JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError
from lora_ft.data.chats.message import Message
from lora_ft.data.chats.telegram import read_telegram, telegram_repair


def message(number: int, text: Any, **more: Any) -> dict[str, Any]:
    at = {"date": "2024-01-02T03:04:05", "date_unixtime": "1704164645"}
    return {"id": number, "type": "message", **at, "from": "Ana", "from_id": "user1", "text": text, **more}


def export(path: Path, *messages: dict[str, Any], **top: Any) -> Path:
    content = {"name": "Garden", "type": "private_group", "id": 7, "messages": list(messages), **top}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read(path: Path) -> list[Message]:
    return [message for _, message in read_telegram(path)]


def test_a_message_with_everything(tmp_path: Path) -> None:
    file = export(tmp_path / "result.json", message(1, "hello"), message(2, "  yes\n", reply_to_message_id=1))
    assert list(read_telegram(file)) == [
        ("Garden", Message("1", 1704164645.0, "Ana", "hello")),
        ("Garden", Message("2", 1704164645.0, "Ana", "yes", "1")),
    ]


def test_local_time_is_read_without_a_unix_time(tmp_path: Path) -> None:
    old = message(1, "hello")
    del old["date_unixtime"]
    assert read(export(tmp_path / "result.json", old))[0].time == 1704164645.0  # 03:04:05 as if it were UTC


def test_texts_of_parts_are_flattened(tmp_path: Path) -> None:
    parts = ["look at ", {"type": "link", "text": "example.org"}, " and ", {"type": "bold", "text": "read"}, "\nit"]
    file = export(tmp_path / "result.json", message(1, parts), message(2, "", text_entities=[{"text": "x"}]))
    assert [item.text for item in read(file)] == ["look at example.org and read\nit", "x"]


def test_only_messages_of_people_are_read(tmp_path: Path) -> None:
    file = export(
        tmp_path / "result.json",
        message(1, "", type="service", actor="Ana", action="create_group"),
        message(2, ""),  # a photo without a caption
        message(3, "caption", photo="photo_1.jpg"),
        message(4, " \u200e "),
        {**message(5, "from nobody"), "from": None, "from_id": None},
    )
    assert [item.text for item in read(file)] == ["caption"]


def test_deleted_account_is_named_by_its_id(tmp_path: Path) -> None:
    file = export(tmp_path / "result.json", {**message(1, "bye"), "from": None, "from_id": "user99"})
    assert read(file)[0].sender == "user99"


def test_reply_to_another_chat_is_ignored(tmp_path: Path) -> None:
    elsewhere = message(1, "hm", reply_to_message_id=5, reply_to_peer_id="channel8")
    assert read(export(tmp_path / "result.json", elsewhere))[0].reply_to is None


def test_names_are_on_one_line_without_colons(tmp_path: Path) -> None:
    assert read(export(tmp_path / "result.json", message(1, "x", **{"from": "Ana:\nthe\u200e Great "})))[0].sender == (
        "Ana the Great"
    )


def test_lone_surrogates_are_removed(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(export(tmp_path / "other", message(1, "HERE")).read_text().replace("HERE", "a \\ud83d b"))
    read(file)[0].text.encode("utf-8")


def test_chats_of_an_account_are_distinguished(tmp_path: Path) -> None:
    chats = [
        {"name": "Garden", "type": "private_group", "id": 1, "messages": [message(1, "one"), message(2, "two")]},
        {"type": "saved_messages", "id": 2, "messages": [message(1, "note to self")]},
        {"name": "Garden", "type": "private_group", "id": 3, "messages": [message(1, "other garden")]},
        {"name": None, "type": "personal_chat", "id": 4, "messages": [message(1, "gone")]},
    ]
    left_chats = [{"name": "Old", "type": "private_group", "id": 5, "messages": [message(1, "left")]}]
    file = tmp_path / "result.json"
    account = {"about": "x", "personal_information": {"messages": "y"}, "chats": {"about": "z", "list": chats}}
    file.write_text(json.dumps(account | {"left_chats": {"list": left_chats}}), encoding="utf-8")
    assert [(chat, item.text) for chat, item in read_telegram(file)] == [
        ("Garden", "one"),
        ("Garden", "two"),
        ("Saved Messages", "note to self"),
        ("Garden #2", "other garden"),
        ("Deleted Account", "gone"),
        ("Old", "left"),
    ]


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    file = export(tmp_path / "result.json", message(1, "hello"))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read(file)[0].text == "hello"


def test_cut_off_file_is_refused_with_the_place(tmp_path: Path) -> None:
    file = export(tmp_path / "result.json", *(message(i, "hello") for i in range(5)))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(LoraFtError, match=r"result\.json, after 3 objects, is cut off; export or copy it again"):
        read(file)


def test_file_that_is_not_utf_8_is_refused_with_the_place(tmp_path: Path) -> None:
    file = export(tmp_path / "result.json", message(0, "fine"), message(1, "café"))
    file.write_bytes(file.read_bytes().replace(b"caf\\u00e9", b"caf\xe9"))
    with pytest.raises(LoraFtError, match=r"result\.json, after \d objects, is not UTF-8"):
        read(file)


@pytest.mark.parametrize("broken", [{"date_unixtime": "soon"}, {"date_unixtime": None}])
def test_message_without_a_date_is_refused_by_its_id(tmp_path: Path, broken: dict[str, Any]) -> None:
    file = export(tmp_path / "result.json", message(41, "hello", **broken))
    with pytest.raises(LoraFtError, match=r"result\.json, message 41, has no date that can be read"):
        read(file)


def read_all(path: Path) -> list[tuple[str, str]]:
    return [(message.thread, message.text) for message in read(path)]


def test_forwarded_messages_and_those_through_bots_are_marked(tmp_path: Path) -> None:
    file = export(
        tmp_path / "result.json",
        message(1, "own"),
        message(2, "news", forwarded_from="City News"),
        message(3, "from a deleted account", forwarded_from=None),
        message(4, "kept", saved_from="Garden"),
        message(5, "cat", via_bot="@gif"),
    )
    assert [(item.forwarded, item.bot) for item in read(file)] == [
        (False, False),
        (True, False),
        (True, False),
        (True, False),
        (False, True),
    ]


def test_answers_of_a_bot_are_marked_in_the_chat_with_it(tmp_path: Path) -> None:
    question, answer = message(1, "/start"), message(2, "Welcome!", **{"from": "Helper", "from_id": "user7"})
    messages = read(export(tmp_path / "result.json", question, answer, type="bot_chat", id=7))
    assert [(item.text, item.bot) for item in messages] == [("/start", False), ("Welcome!", True)]


def topic(number: int, title: str) -> dict[str, Any]:
    return {**message(number, "", actor="Ana", action="topic_created", title=title), "type": "service"}


def test_topics_follow_the_chain_of_replies(tmp_path: Path) -> None:
    file = export(
        tmp_path / "result.json",
        message(3, "before the forum"),
        topic(10, "Goats"),
        message(11, "general"),
        topic(12, "Goats"),
        message(20, "goat", reply_to_message_id=10),
        message(21, "other goat", reply_to_message_id=12),
        message(22, "answer to goat", reply_to_message_id=20),
        message(23, "answer to answer", reply_to_message_id=22),
        message(24, "answer to general", reply_to_message_id=11),
        message(25, "answer to what was before", reply_to_message_id=3),
        message(26, "answer to what is gone", reply_to_message_id=15),
        message(27, "and to that", reply_to_message_id=26),
        message(28, "answer to what was before the export", reply_to_message_id=2),
        message(29, "elsewhere", reply_to_message_id=10, reply_to_peer_id="channel9"),
    )
    assert read_all(file) == [
        ("", "before the forum"),
        ("", "general"),
        ("Goats", "goat"),
        ("Goats #12", "other goat"),
        ("Goats", "answer to goat"),
        ("Goats", "answer to answer"),
        ("", "answer to general"),
        ("", "answer to what was before"),
        ("#15", "answer to what is gone"),
        ("#15", "and to that"),
        ("#2", "answer to what was before the export"),
        ("", "elsewhere"),
    ]


def test_keys_of_a_chat_may_come_in_any_order(tmp_path: Path) -> None:
    file = export(tmp_path / "result.json", message(1, "hello"))
    file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True))
    assert next(read_telegram(file))[0] == "Garden"
    chats = {"list": [{"messages": [message(1, "hello")], "name": "Garden"}]}
    file.write_text(json.dumps({"chats": chats}))
    with pytest.raises(LoraFtError, match=r"has a chat's name after its messages"):
        read(file)


INVALID = rb"""{
 "name": "Garden \x0C \\x0C \\\x1f",
 "type": "private_group",
 "messages": [
  {
   "id": 1,
   "type": "message",
   "date_unixtime": "1704164645",
   "from": "Ana",
   "from_id": user1,
   "text": ["say \"\x0B\" ", {
     "type": "mention_name",
     "text": "Ben: user5",
     "user_id": user5
   }]
  }
 ]
}"""
VALID = INVALID.replace(rb" \x0C", rb" \u000C").replace(rb"\\\x1f", rb"\\\u001f").replace(rb"\x0B", rb"\u000B")
VALID = VALID.replace(b": user1,", b': "user1",').replace(b'"user_id": user5', b'"user_id": "user5"')


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000])
def test_invalid_json_of_telegram_is_repaired_in_any_chunks(size: int) -> None:
    repair = telegram_repair()
    chunks = [INVALID[start : start + size] for start in range(0, len(INVALID), size)]
    assert b"".join(map(repair, [*chunks, b""])) == VALID
    json.loads(VALID)


@given(st.text(alphabet='\\x0Cf"\n :user1,a', max_size=400).map(json.dumps), st.integers(1, 40))
def test_valid_json_is_not_changed_by_the_repair(text: str, size: int) -> None:
    data, repair = f'{{\n "a": {text},\n "b": 1}}'.encode(), telegram_repair()
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    assert b"".join(map(repair, [*chunks, b""])) == data


def test_huge_number_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(f'{{"name": "x", "type": "y", "messages": [{4301 * "1"}]}}')
    with pytest.raises(LoraFtError, match=r"result\.json is out of bounds at byte 40 \(a number of more than 300"):
        read(file)
    file.write_text(f'{{"name": "x", "type": "y", "messages": {200_000 * "["}')
    with pytest.raises(LoraFtError, match=r"out of bounds at byte 238 \(nested deeper than 200 levels\)"):
        read(file)

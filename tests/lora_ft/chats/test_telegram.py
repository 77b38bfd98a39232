"""Telegram Desktop's exports: texts flattened, what is no message left out, replies kept, a whole account read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.errors import LoraFtError
from lora_ft.chats.message import Message
from lora_ft.chats.telegram import read_telegram


def message(number: int, text: Any, **more: Any) -> dict[str, Any]:
    at = {"date": "2024-01-02T03:04:05", "date_unixtime": "1704164645"}
    return {"id": number, "type": "message", **at, "from": "Ana", "from_id": "user1", "text": text, **more}


def export(path: Path, *messages: dict[str, Any], **top: Any) -> Path:
    content = {"name": "Garden", "type": "private_group", "id": 7, "messages": list(messages), **top}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read(path: Path) -> list[Message]:
    return [found for _, found in read_telegram(path)]


def test_a_message_with_everything(tmp_path: Path) -> None:
    file = export(tmp_path / "result.json", message(1, "hello"), message(2, "  yes\n", reply_to_message_id=1))
    assert list(read_telegram(file)) == [
        ("Garden", Message("1", 1704164645.0, "Ana", "hello")),
        ("Garden", Message("2", 1704164645.0, "Ana", "yes", "1")),
    ]


def test_the_local_clock_is_read_where_there_is_no_other(tmp_path: Path) -> None:
    old = message(1, "hello")
    del old["date_unixtime"]
    assert read(export(tmp_path / "result.json", old))[0].time == 1704164645.0  # 03:04:05 as if it were UTC


def test_texts_of_parts_are_flattened(tmp_path: Path) -> None:
    parts = ["look at ", {"type": "link", "text": "example.org"}, " and ", {"type": "bold", "text": "read"}, "\nit"]
    file = export(tmp_path / "result.json", message(1, parts), message(2, "", text_entities=[{"text": "x"}]))
    assert [found.text for found in read(file)] == ["look at example.org and read\nit", "x"]


def test_what_is_no_message_of_a_person_is_left_out(tmp_path: Path) -> None:
    file = export(
        tmp_path / "result.json",
        message(1, "", type="service", actor="Ana", action="create_group"),
        message(2, ""),  # a photo without a caption
        message(3, "caption", photo="photo_1.jpg"),
        message(4, " \u200e "),
        {**message(5, "from nobody"), "from": None, "from_id": None},
    )
    assert [found.text for found in read(file)] == ["caption"]


def test_a_deleted_account_is_known_by_its_number(tmp_path: Path) -> None:
    file = export(tmp_path / "result.json", {**message(1, "bye"), "from": None, "from_id": "user99"})
    assert read(file)[0].sender == "user99"


def test_a_reply_to_another_chat_is_none(tmp_path: Path) -> None:
    elsewhere = message(1, "hm", reply_to_message_id=5, reply_to_peer_id="channel8")
    assert read(export(tmp_path / "result.json", elsewhere))[0].reply_to is None


def test_names_stand_on_one_line_without_colons(tmp_path: Path) -> None:
    assert read(export(tmp_path / "result.json", message(1, "x", **{"from": "Ana:\nthe\u200e Great "})))[0].sender == (
        "Ana the Great"
    )


def test_half_a_character_does_not_get_through(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(export(tmp_path / "other", message(1, "HERE")).read_text().replace("HERE", "a \\ud83d b"))
    read(file)[0].text.encode("utf-8")


def test_the_chats_of_an_account_are_told_apart(tmp_path: Path) -> None:
    chats = [
        {"name": "Garden", "type": "private_group", "id": 1, "messages": [message(1, "one"), message(2, "two")]},
        {"type": "saved_messages", "id": 2, "messages": [message(1, "note to self")]},
        {"name": "Garden", "type": "private_group", "id": 3, "messages": [message(1, "other garden")]},
        {"name": None, "type": "personal_chat", "id": 4, "messages": [message(1, "gone")]},
    ]
    left = [{"name": "Old", "type": "private_group", "id": 5, "messages": [message(1, "left")]}]
    file = tmp_path / "result.json"
    account = {"about": "x", "personal_information": {"messages": "y"}, "chats": {"about": "z", "list": chats}}
    file.write_text(json.dumps(account | {"left_chats": {"list": left}}), encoding="utf-8")
    assert [(chat, found.text) for chat, found in read_telegram(file)] == [
        ("Garden", "one"),
        ("Garden", "two"),
        ("Saved Messages", "note to self"),
        ("Garden #2", "other garden"),
        ("Deleted Account", "gone"),
        ("Old", "left"),
    ]


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    file = export(tmp_path / "result.json", message(1, "hello"))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read(file)[0].text == "hello"


def test_a_file_that_is_cut_off_says_where(tmp_path: Path) -> None:
    file = export(tmp_path / "result.json", *(message(i, "hello") for i in range(5)))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(LoraFtError, match=r"result\.json, after 3 objects, is cut off; export or copy it again"):
        read(file)


def test_a_file_that_is_not_utf_8_says_where(tmp_path: Path) -> None:
    file = export(tmp_path / "result.json", message(0, "fine"), message(1, "café"))
    file.write_bytes(file.read_bytes().replace(b"caf\\u00e9", b"caf\xe9"))
    with pytest.raises(LoraFtError, match=r"result\.json, after \d objects, is not UTF-8"):
        read(file)


@pytest.mark.parametrize("broken", [{"date_unixtime": "soon"}, {"date_unixtime": None}])
def test_a_message_without_a_date_is_named(tmp_path: Path, broken: dict[str, Any]) -> None:
    file = export(tmp_path / "result.json", message(41, "hello", **broken))
    with pytest.raises(LoraFtError, match=r"result\.json, message 41, has no date that can be read"):
        read(file)

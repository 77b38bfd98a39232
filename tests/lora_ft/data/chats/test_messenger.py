"""Messenger and Instagram: repaired characters, oldest messages first, folders and zips, Facebook's notices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.chats.message import Message
from lora_ft.data.chats.messenger import _repaired, read_messenger


def spoiled(text: str) -> str:
    return text.encode("utf-8").decode("latin-1")


def message(second: int, text: str, sender: str = "Zoë Oak", **more: Any) -> dict[str, Any]:
    return {"sender_name": spoiled(sender), "timestamp_ms": 1000 * second, "content": spoiled(text), **more}


def export(folder: Path, number: int, *messages: dict[str, Any], title: str = "Gärten") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"message_{number}.json"
    people = [{"name": spoiled("Zoë Oak")}, {"name": "Ben Elm"}]
    top = {"participants": people, "messages": list(messages), "title": spoiled(title), "thread_path": "inbox/g_1"}
    file.write_text(json.dumps(top), encoding="utf-8")
    return file


def texts(path: Path) -> list[tuple[str, str]]:
    return [(chat, message.text) for chat, message in read_messenger(path)]


def test_characters_are_repaired_and_the_oldest_message_comes_first(tmp_path: Path) -> None:
    file = export(
        tmp_path / "g_1", 1, message(9, "café 😀"), message(9, "same second, earlier"), message(5, "hello", "Ben Elm")
    )
    assert list(read_messenger(file)) == [
        ("Gärten", Message("message_1.json 3", 5.0, "Ben Elm", "hello")),
        ("Gärten", Message("message_1.json 2", 9.0, "Zoë Oak", "same second, earlier")),
        ("Gärten", Message("message_1.json 1", 9.0, "Zoë Oak", "café 😀")),
    ]


@given(st.text(max_size=40))
def test_every_text_is_repaired(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode("utf-8")
    assert _repaired(spoiled(text)) == text or any("\x80" <= letter <= "\xff" for letter in text)


def test_incomplete_character_stays_unchanged() -> None:
    assert _repaired(spoiled("café? ") + "ð") == "café? ð" and _repaired("café, naïve") == "café, naïve"


@pytest.mark.parametrize("given_name", ["", "message_1.json", "message_2.json"])
def test_all_files_of_a_chat_are_read_in_order(tmp_path: Path, given_name: str) -> None:
    for number in (1, 2, 10):
        export(tmp_path / "g_1", number, message(100 - number, f"text {number}"))
    assert texts(tmp_path / "g_1" / given_name) == [("Gärten", f"text {number}") for number in (10, 2, 1)]


def test_a_download_is_read_as_a_folder_and_as_a_zip(tmp_path: Path) -> None:
    inbox = tmp_path / "facebook-x" / "your_facebook_activity" / "messages" / "inbox"
    export(inbox / "g_1", 1, message(1, "one"))
    export(inbox / "g_2", 1, message(2, "two"))
    expected = [("Gärten", "one"), ("Gärten #2", "two")]
    assert texts(tmp_path / "facebook-x") == expected
    assert texts(Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "facebook-x"))) == expected


def test_an_encrypted_chat_is_read(tmp_path: Path) -> None:
    fields = {"senderName": "Zoë", "text": "café", "timestamp": 5000, "type": "text", "isUnsent": False, "media": []}
    photo, unsent = fields | {"type": "media", "text": "photo"}, fields | {"isUnsent": True}
    content = {"participants": ["Zoë", "Ben"], "threadName": "Ben_12", "messages": [fields, photo, unsent]}
    (tmp_path / "messages").mkdir()
    (tmp_path / "messages" / "Ben_12.json").write_text(json.dumps(content))
    expected = [("Ben", Message("Ben_12.json 1", 5.0, "Zoë", "café"))]
    assert list(read_messenger(tmp_path / "messages" / "Ben_12.json")) == expected
    assert list(read_messenger(tmp_path)) == expected


def test_notices_of_facebook_are_left_out(tmp_path: Path) -> None:
    notices = [
        message(1, "Zoë sent an attachment.", share={"link": "x"}),
        message(2, "You sent a photo."),
        message(3, "Zoë Oak named the group Gärten."),
        message(4, "Reacted 👍 to your message "),
        message(5, "The video chat ended.", call_duration=7),
        message(6, "gone", is_unsent=True),
        message(7, "Zoë added Cleo to the group.", type="Subscribe", users=[{"name": "Cleo"}]),
    ]
    messages = [
        message(8, "Zoë sent me a photo of it."),
        message(9, "You called? I missed it"),
        message(10, "I left the group"),
    ]
    assert [text for _, text in texts(export(tmp_path, 1, *reversed([*notices, *messages])))] == [
        "Zoë sent me a photo of it.",
        "You called? I missed it",
        "I left the group",
    ]


@pytest.mark.parametrize(
    "broken", [{"timestamp_ms": "soon"}, {"timestamp_ms": 1e300}, {"sender_name": 7}, {"content": []}]
)
def test_malformed_message_is_refused_by_name(tmp_path: Path, broken: dict[str, Any]) -> None:
    with pytest.raises(LoraFtError, match=r"message_1\.json, message 2.*export it again from Facebook"):
        texts(export(tmp_path, 1, message(1, "x"), message(2, "y") | broken))


def test_folder_without_messages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no message_1\.json of Messenger or Instagram"):
        texts(tmp_path)

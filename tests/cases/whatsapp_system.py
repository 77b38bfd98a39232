"""WhatsApp's own messages are left out, and those of people are kept."""

from __future__ import annotations

from pathlib import Path

from lora_ft.data.chats.formats import read_chats


def _messages(file: Path) -> list[tuple[str, str]]:
    (messages,) = read_chats(file).values()
    return [(message.sender, message.text) for message in messages]


def check_deleted_messages_are_left_out(folder: Path, scratch: Path) -> None:
    assert _messages(folder / "deleted.txt") == [("Ana", "hello"), ("Ana", "bye")]


def check_edited_texts_stay_without_their_mark(folder: Path, scratch: Path) -> None:
    assert [text for _, text in _messages(folder / "edited.txt")] == ["hello", "hola", "olá", "hallo", "salut"]


def check_lines_about_the_group_have_no_sender(folder: Path, scratch: Path) -> None:
    assert _messages(folder / "group.txt") == [("Ana", "hello"), ("Ben", "hi")]


def check_documents_of_ios_are_left_out(folder: Path, scratch: Path) -> None:
    assert _messages(folder / "ios_doc.txt") == [("Ben", "got it")]


def check_pasted_lines_stay_in_their_message(folder: Path, scratch: Path) -> None:
    assert _messages(folder / "pasted.txt") == [
        ("Ana", "see what he wrote:\n[18/11/2023, 22:15] Carl: I sold it\n[18/11/2023, 22:16] Dora: no!"),
        ("Ben", "unbelievable"),
    ]

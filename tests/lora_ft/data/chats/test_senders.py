"""Senders: names with colons, texts without a blank before them, and sentences about people."""

from __future__ import annotations

import pytest

from lora_ft.data.chats.senders import Senders


def split(*lines: str, bracket: bool = False) -> list[tuple[str, str] | None]:
    senders = Senders(bracket=bracket)
    for line in lines:
        senders.add(line)
    return [senders.split(line) for line in lines]


def test_a_text_may_follow_its_colon_at_once() -> None:
    assert split("Ana: hey", "Ben:hi", "Ben:fine: thanks") == [("Ana", "hey"), ("Ben", "hi"), ("Ben", "fine: thanks")]


def test_names_keep_their_colons() -> None:
    assert split("Dr:Who: hello", "Dr:Who: again: you") == [("Dr:Who", "hello"), ("Dr:Who", "again: you")]


@pytest.mark.parametrize(
    "name",
    [
        "Community Ana",
        "the neighbor",
        "+49 170 1",
        "\u202a+49 170 1\u202c",
        "~\u202fBen",
        "Ana 🙂",
        'Ana "Anita" Lopez',
        "Ana de la Cruz",
        "anna b",
        "Community Ana",
    ],
)
def test_unusual_names_are_senders(name: str) -> None:
    assert split("Ana: x", f"{name}: hello: you")[1] == (name, "hello: you")


@pytest.mark.parametrize(
    "line",
    [
        "Ana added you to a group in the community: Green City",
        "Ana changed the group description to: no dogs",
        "Ana changed the subject from 'Garden' to 'Garden: plot 14'",
        "Ana cambió el asunto de Garden a Garden: plot 14",
        'Ana created group "Garden: plot 14"',
        "Ana hat die Gruppenbeschreibung geändert zu: keine Hunde",
        "Du hast die Gruppenbeschreibung geändert: keine Hunde",
        "Вы изменили описание группы: без собак",
        "你更改了群组描述: 不准带狗",
        "أضافك Ana إلى مجموعة في المجتمع: Green City",
        "Ana ने आपको कम्युनिटी के ग्रुप में जोड़ा: Green City",
        "+1 555 0100 added you to a group in the community: Green City",
        "Ana changed this group's link to https://chat.whatsapp.com/x",
        "Messages and calls are end-to-end encrypted. Tap to learn more.",
        "Ana joined using this group's invite link",
    ],
)
def test_lines_of_whatsapp_have_no_sender(line: str) -> None:
    assert split("Ana: hello", line)[1] is None


def test_quote_before_a_colon_is_not_a_sender_on_ios() -> None:
    assert split("Ana: hi", "\u200eAna hat „Garten: neu“ erstellt", bracket=True) == [("Ana", "hi"), None]


def test_heads_in_brackets_have_any_sender() -> None:
    assert split("the one from the corner shop:hi", bracket=True) == [("the one from the corner shop", "hi")]

"""The JSON of DiscordChatExporter: people's messages, by the names that the server shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.errors import LoraFtError
from lora_ft.chats.discord import read_discord
from lora_ft.chats.message import Message

ANA = {"id": "11", "name": "ana_oak", "discriminator": "0000", "nickname": "Ana", "isBot": False}


def message(number: int, content: str, **more: Any) -> dict[str, Any]:
    at = "2024-01-02T03:04:05.678+01:00"
    return {"id": str(number), "type": "Default", "timestamp": at, "content": content, "author": ANA, **more}


def export(path: Path, *messages: dict[str, Any]) -> Path:
    top = {"guild": {"id": "1", "name": "Home"}, "channel": {"id": "2", "type": "GuildTextChat", "name": "garden"}}
    path.write_text(json.dumps(top | {"messages": list(messages), "messageCount": len(messages)}))
    return path


def test_messages_and_replies(tmp_path: Path) -> None:
    reply = message(2, "yes", type="Reply", reference={"messageId": "1", "channelId": "2"})
    assert list(read_discord(export(tmp_path / "d.json", message(1, "you?"), reply))) == [
        ("garden", Message("1", 1704161045.678, "Ana", "you?")),
        ("garden", Message("2", 1704161045.678, "Ana", "yes", "1")),
    ]


def test_what_no_person_wrote_is_left_out(tmp_path: Path) -> None:
    joined = message(1, "Joined the server.", type="GuildMemberJoin")
    beep = message(2, "beep", author=ANA | {"isBot": True})
    assert list(read_discord(export(tmp_path / "d.json", joined, beep, message(3, ""), message(4, " ")))) == []


def test_mentions_and_emoji_are_what_a_reader_sees(tmp_path: Path) -> None:
    text = "<@11> or <@!11>, <:beans:123> <a:goat:456>, <@99>"
    ((_, found),) = read_discord(export(tmp_path / "d.json", message(1, text, mentions=[ANA])))
    assert found.text == "@Ana or @Ana, :beans: :goat:, @99"


@pytest.mark.parametrize("broken", [{"author": None}, {"timestamp": "soon"}, {"content": None}])
def test_a_message_of_another_shape_is_named(tmp_path: Path, broken: dict[str, Any]) -> None:
    with pytest.raises(LoraFtError, match=r"d\.json, message 7, is not as DiscordChatExporter writes it"):
        list(read_discord(export(tmp_path / "d.json", message(7, "x") | broken)))

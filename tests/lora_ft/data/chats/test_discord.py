"""DiscordChatExporter's exports: messages of people, with the names that the server shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.chats.discord import read_discord
from lora_ft.data.chats.message import Message

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


def test_messages_of_discord_are_left_out(tmp_path: Path) -> None:
    joined = message(1, "Joined the server.", type="GuildMemberJoin")
    assert list(read_discord(export(tmp_path / "d.json", joined, message(3, ""), message(4, " ")))) == []


def test_bots_and_forwards_are_marked(tmp_path: Path) -> None:
    beep = message(2, "beep", author=ANA | {"isBot": True})
    forward = message(3, "", reference={"messageId": "9"}, forwardedMessage={"content": "old words"})
    messages = [item for _, item in read_discord(export(tmp_path / "d.json", beep, forward))]
    assert [(item.text, item.bot, item.forwarded, item.reply_to) for item in messages] == [
        ("beep", True, False, None),
        ("old words", False, True, None),
    ]


def test_a_thread_is_a_conversation_of_its_channel(tmp_path: Path) -> None:
    file = export(tmp_path / "d.json", message(1, "in it"))
    channel = {"id": "3", "type": "GuildPublicThread", "category": "garden", "name": "goats"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"channel": channel}))
    ((chat, entry),) = read_discord(file)
    assert (chat, entry.thread) == ("garden", "goats")


def test_mentions_and_emoji_read_as_displayed(tmp_path: Path) -> None:
    text = "<@11> or <@!11>, <:beans:123> <a:goat:456>, <@99>"
    ((_, entry),) = read_discord(export(tmp_path / "d.json", message(1, text, mentions=[ANA])))
    assert entry.text == "@Ana or @Ana, :beans: :goat:, @99"


@pytest.mark.parametrize(
    ("broken", "part"),
    [
        ({"author": None}, "author is null, not an object"),
        ({"author": {"name": 7}}, "name is a number, not a text (got 7)"),
        ({"timestamp": "soon"}, "has no date that can be read (timestamp: soon)"),
        ({"content": None}, "content is null, not a text"),
        ({"mentions": [7]}, "mentions is a number, not a list of objects"),
    ],
)
def test_malformed_message_is_refused_with_its_id(tmp_path: Path, broken: dict[str, Any], part: str) -> None:
    with pytest.raises(LoraFtError, match=rf"d\.json, message 7.*{re.escape(part)}"):
        list(read_discord(export(tmp_path / "d.json", message(7, "x") | broken)))


TEXT = f"""{62 * "="}
Guild: Home
Channel: Text / garden
{62 * "="}

[{{0}} 9:00 AM] ana_oak (pinned)
hello
  there

[{{0}} 9:05 AM] ben
[pasted without a date] x

and more

{{{{Attachments}}}}
https://example.org/a.png

[{{0}} 9:06 AM] ben
Joined the server.

[{{1}} 12:30 AM] ben


{{{{Embed}}}}
somebody else's words

[{{1}} 12:31 PM] ana_oak
bye

{62 * "="}
Exported 5 message(s)
{62 * "="}
"""


@pytest.mark.parametrize(
    "days", [("20-Nov-23", "21-Nov-23"), ("11/20/2023", "11/21/2023"), ("2023-11-20", "2023-11-21")]
)
def test_a_text_export_is_read(tmp_path: Path, days: tuple[str, str]) -> None:
    (tmp_path / "d.txt").write_text(TEXT.format(*days), encoding="utf-8")
    start = 1700438400.0  # of 2023-11-20
    assert list(read_discord(tmp_path / "d.txt")) == [
        ("garden", Message("6", start + 9 * 3600, "ana_oak", "hello\n  there")),
        ("garden", Message("10", start + 9 * 3600 + 300, "ben", "[pasted without a date] x\n\nand more")),
        ("garden", Message("27", start + 86400 + 12 * 3600 + 1860, "ana_oak", "bye")),
    ]


def test_dates_that_may_be_day_or_month_first_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text(TEXT.replace(" AM", "").replace(" PM", "").format("10.11.2023", "11.11.2023"))
    with pytest.raises(
        UsageError, match=r"may be day first or month first \(got 10/11/2023\); export the channel as JSON"
    ):
        list(read_discord(tmp_path / "d.txt"))


@pytest.mark.parametrize("date", ["2023-11-20T09:00:00.0000000+00:00", "20-Nov-23 09:00 AM", "11/20/2023 9:00 AM"])
def test_a_csv_export_is_read(tmp_path: Path, date: str) -> None:
    rows = f'AuthorID,Author,Date,Content,Attachments,Reactions\n"1","ana","{date}","a ""b""\nc, d","",""\n'
    (tmp_path / "d.csv").write_text(rows)
    assert list(read_discord(tmp_path / "d.csv")) == [("d", Message("3", 1700470800.0, "ana", 'a "b"\nc, d'))]
    (tmp_path / "d.csv").write_text(rows + '"1","ana"\n')
    with pytest.raises(LoraFtError, match=r"d\.csv:4 has 2 cells, but the header has 6"):
        list(read_discord(tmp_path / "d.csv"))

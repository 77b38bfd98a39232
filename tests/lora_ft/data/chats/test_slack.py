"""Slack's exports: days in order, people by name, markup as displayed, threads as replies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.chats.message import Message
from lora_ft.data.chats.slack import read_slack

USERS = [
    {"id": "U1", "name": "ana.oak", "profile": {"display_name": "Ana", "real_name": "Ana Oak"}},
    {"id": "U2", "name": "ben", "profile": {"display_name": "", "real_name": "Ben Ash"}},
]


def message(ts: str, text: str, user: str | None = "U1", **more: Any) -> dict[str, Any]:
    return {"type": "message", "ts": ts, "text": text, "user": user, **more}


def export(folder: Path, days: dict[str, list[dict[str, Any]]]) -> Path:
    folder.mkdir()
    (folder / "users.json").write_text(json.dumps(USERS))
    (folder / "channels.json").write_text(json.dumps([{"id": "C1", "name": "garden"}]))
    for name, messages in days.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(messages))
    return folder


def texts(folder: Path) -> list[str]:
    return [message.text for _, message in read_slack(folder)]


def test_days_of_every_channel_in_a_folder_and_in_a_zip_file(tmp_path: Path) -> None:
    folder = export(
        tmp_path / "slack",
        {
            "garden/2024-01-02.json": [message("1704164645.000200", "second", "U2")],
            "garden/2024-01-01.json": [message("1704078245.000100", "first")],
            "random/2024-01-01.json": [message("1704078245.000100", "elsewhere")],
        },
    )
    expected = [
        ("garden", Message("1704078245.000100", 1704078245.0001, "Ana", "first")),
        ("garden", Message("1704164645.000200", 1704164645.0002, "Ben Ash", "second")),
        ("random", Message("1704078245.000100", 1704078245.0001, "Ana", "elsewhere")),
    ]
    assert list(read_slack(folder)) == expected
    assert list(read_slack(Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", folder)))) == expected


def test_the_folder_of_one_channel_takes_names_from_its_messages(tmp_path: Path) -> None:
    named = message("1.0", "hello", "U9", user_profile={"display_name": "Cleo"})
    folder = export(tmp_path / "slack", {"garden/2024-01-01.json": [named, message("2.0", "hi", "U8")]}) / "garden"
    assert [(chat, message.sender) for chat, message in read_slack(folder)] == [("garden", "Cleo"), ("garden", "U8")]


def test_messages_of_slack_are_left_out(tmp_path: Path) -> None:
    day = [
        message("1.0", "joined", subtype="channel_join"),
        message("2.0", "gone", subtype="tombstone"),
        message("4.0", ""),
        message("5.0", "waves", subtype="me_message"),
        {"type": "event", "ts": "6.0", "text": "no message"},
    ]
    assert texts(export(tmp_path / "slack", {"garden/2024-01-01.json": day})) == ["waves"]


def test_bots_are_marked(tmp_path: Path) -> None:
    day = [
        message("1.0", "beep", None, subtype="bot_message", bot_id="B1", username="Deploy"),
        message("2.0", "boop", bot_id="B1"),
        message("3.0", "bap", "U3"),
        message("4.0", "hello"),
        message("5.0", "How do I mute this?", "USLACKBOT"),
    ]
    folder = export(tmp_path / "slack", {"garden/2024-01-01.json": day})
    (folder / "users.json").write_text(json.dumps([*USERS, {"id": "U3", "name": "bot", "is_bot": True}]))
    messages = [(message.sender, message.text, message.bot) for _, message in read_slack(folder)]
    expected = [("Deploy", "beep", True), ("Ana", "boop", True), ("bot", "bap", True), ("Ana", "hello", False)]
    expected.append(("USLACKBOT", "How do I mute this?", True))
    assert messages == expected


def test_text_in_blocks_and_attachments_alone_is_read(tmp_path: Path) -> None:
    section = [
        {"type": "text", "text": "see "},
        {"type": "user", "user_id": "U2"},
        {"type": "text", "text": " in "},
        {"type": "channel", "channel_id": "C1"},
        {"type": "emoji", "name": "wave"},
        {"type": "link", "url": "https://example.org"},
    ]
    items = [{"type": "rich_text_section", "elements": [{"type": "text", "text": word}]} for word in ("a", "b")]
    rich = {
        "type": "rich_text",
        "elements": [{"type": "rich_text_section", "elements": section}, {"type": "rich_text_list", "elements": items}],
    }
    marked = {"type": "section", "text": {"type": "mrkdwn", "text": "for <@U1>"}}
    day = [
        message("1.0", "", blocks=[rich]),
        message("2.0", "", blocks=[marked, {"type": "divider"}, {"type": "image", "alt_text": "x"}]),
        message("3.0", "own", blocks=[marked]),
        message("4.0", "", attachments=[{"text": "said by others", "is_share": True, "author_name": "Cleo"}]),
        message("5.0", "", attachments=[{"from_url": "https://example.org", "text": "a preview"}]),
    ]
    messages = [
        (message.text, message.forwarded)
        for _, message in read_slack(export(tmp_path / "slack", {"g/2024-01-01.json": day}))
    ]
    assert messages == [
        ("see @Ben Ash in #garden:wave:https://example.org\n• a\n• b", False),
        ("for @Ana", False),
        ("own", False),
        ("said by others", True),
    ]


def test_a_file_of_slackdump_is_read_with_its_threads(tmp_path: Path) -> None:
    root = message("1.0", "who?", "U1")
    replies = [message("1.0", "who?", "U1"), message("2.0", "me", "U2")]
    content = {"channel_id": "C1", "name": "garden", "messages": [{**root, "slackdump_thread_replies": replies}]}
    (tmp_path / "C1.json").write_text(json.dumps(content))
    (tmp_path / "users.json").write_text(json.dumps(USERS))
    messages = [
        (chat, message.sender, message.text, message.thread, message.reply_to)
        for chat, message in read_slack(tmp_path / "C1.json")
    ]
    assert messages == [("garden", "Ana", "who?", "1.0", None), ("garden", "Ben Ash", "me", "1.0", "1.0")]


def test_markup_reads_as_displayed(tmp_path: Path) -> None:
    text = (
        "<@U1> and <@U2|old> and <@U7>, see <#C1|garden>, <!here>, <https://example.org|this> &amp; 1 &lt; 2 "
        "<!subteam^S1|@cooks>"
    )
    folder = export(tmp_path / "slack", {"garden/2024-01-01.json": [message("1.0", text)]})
    assert texts(folder) == ["@Ana and @Ben Ash and @U7, see #garden, @here, this & 1 < 2 @cooks"]


def test_messages_of_a_thread_answer_its_first_message(tmp_path: Path) -> None:
    day = [message("1.0", "who?", thread_ts="1.0"), message("2.0", "me", "U2", thread_ts="1.0")]
    messages = [messages for _, messages in read_slack(export(tmp_path / "slack", {"garden/2024-01-01.json": day}))]
    assert [(message.reply_to, message.thread) for message in messages] == [(None, "1.0"), ("1.0", "1.0")]


def test_a_folder_without_days_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not an export of Slack: it has no daily files"):
        texts(export(tmp_path / "slack", {}))


def test_damaged_daily_file_is_refused(tmp_path: Path) -> None:
    folder = export(tmp_path / "slack", {"garden/2024-01-01.json": [message("1.0", "a"), message("2.0", "b")]})
    day = folder / "garden" / "2024-01-01.json"
    day.write_text(day.read_text()[:-20])
    with pytest.raises(LoraFtError, match=r"2024-01-01\.json, after 1 objects, is cut off"):
        texts(folder)
    day.write_text(json.dumps([message("soon", "a")]))
    with pytest.raises(LoraFtError, match=r"2024-01-01\.json, message soon, has no date that can be read"):
        texts(folder)

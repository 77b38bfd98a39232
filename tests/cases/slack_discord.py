"""Exports of Slack, Discord, Messenger, LINE and KakaoTalk."""

from __future__ import annotations

from pathlib import Path

from lora_ft.data.chats.formats import Choice, find_format, read_chats


def _texts(file: Path, choice: Choice | None = None) -> dict[str, list[str]]:
    chats = read_chats(file, choice=choice or Choice())
    return {chat: [f"{message.sender}: {message.text}" for message in messages] for chat, messages in chats.items()}


def check_slack_folder(folder: Path, scratch: Path) -> None:
    assert _texts(folder / "export") == {
        "D0123": ["Ana: psst", "Ben Elm: yes?"],
        "general › 1700470800.000100": ["Ana: who has the keys?", "Ben Elm: I have them", "Ana: thanks!"],
        "general": [
            "Ben Elm: deploy is red",
            "Ben Elm: text only in blocks",
            "Ana: fixed @team & link & @Ben Elm",
            "Ana: see",
            "Ben Elm: new topic here",
        ],
    }
    bots = _texts(folder / "export", Choice(bots=True))["general"]
    assert "Deploy: build 12 failed" in bots and "RSS: x" in bots


def check_slackdump_file(folder: Path, scratch: Path) -> None:
    texts = _texts(folder / "C1.json")
    assert texts == {"general › 1700470800.000100": ["U1: hello", "U2: reply"], "general": ["U2: hi"]}


def check_discord_forms(folder: Path, scratch: Path) -> None:
    expected = ["Ana: hello", "Ana: yes", "Ana: :pepe: <#55> <@&77> <t:1700000000:R>"]
    assert _texts(folder / "discord.json") == {"general": expected}
    assert "Ben: forwarded words" in _texts(folder / "discord.json", Choice(forwarded=True))["general"]
    assert _texts(folder / "dce.txt") == {"general": ["ana: hello", "ben: hi"]}
    assert _texts(folder / "dce.csv") == {"dce": ["ana: hello"]}


def check_other_programs(folder: Path, scratch: Path) -> None:
    for name in ("messenger", "messenger/message_1.json"):
        assert _texts(folder / name) == {"Garden": ["Ana Oak: hello", "Ben Elm: café? ð"]}
    assert _texts(folder / "line.txt") == _texts(folder / "kakao.txt") == {"Garden": ["Ana: hello", "Ben: hi"]}
    formats = {name: find_format(folder / name) for name in ("messenger", "line.txt", "kakao.txt")}
    assert formats == {"messenger": "messenger", "line.txt": "line", "kakao.txt": "kakaotalk"}

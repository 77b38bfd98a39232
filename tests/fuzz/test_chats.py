"""Exports of chats, in every format."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import given

from lora_ft.data.chats.formats import read_chats
from tests.fuzz.limits import fuzz, seeds, survives
from tests.fuzz.mutations import damaged_bytes, damaged_json, json_bytes

WHATSAPP = """\
[05.08.23, 17:52:02] Ana: one
[05.08.23, 17:53:02] Ben: two
more of two
\u200e[05.08.23, 17:54:00] Ana: \u200eimage omitted
[06.08.23, 09:00:01] Ben: three: four
"""
ANDROID = "20/11/2023, 9:05 pm - Ana: hello\n20/11/2023, 9:06 pm - Ben: hi\n20/11/2023, 9:07 pm - Ben left\n"
TELEGRAM = {
    "name": "Team",
    "type": "private_group",
    "id": 1,
    "messages": [
        {
            "id": 1,
            "type": "service",
            "date": "2023-11-20T09:00:00",
            "date_unixtime": "1700470800",
            "actor": "Ana",
            "action": "topic_created",
            "title": "Food",
            "text": "",
        },
        {
            "id": 2,
            "type": "message",
            "date": "2023-11-20T09:05:00",
            "date_unixtime": "1700471100",
            "from": "Ana",
            "from_id": "user1",
            "text": ["hi ", {"type": "bold", "text": "all"}],
            "reply_to_message_id": 1,
        },
        {
            "id": 3,
            "type": "message",
            "date": "2023-11-20T09:06:00",
            "date_unixtime": "1700471160",
            "from": "Ben",
            "from_id": "user2",
            "text": "hello",
            "forwarded_from": "Cleo",
            "reply_to_message_id": 2,
        },
    ],
}
DISCORD = {
    "guild": {"id": "1", "name": "G"},
    "channel": {"id": "2", "name": "general", "type": "GuildTextChat"},
    "messages": [
        {
            "id": str(i),
            "type": "Default",
            "timestamp": f"2023-11-20T09:0{i}:00+00:00",
            "content": f"text {i} <@1>",
            "author": {"id": str(i % 2), "name": "ab"[i % 2], "nickname": None, "isBot": False},
            "mentions": [{"id": "1", "name": "b"}],
            "reference": {"messageId": "0"},
        }
        for i in range(4)
    ],
}
SLACK = [
    {
        "type": "message",
        "user": f"U{i % 2}",
        "text": f"text {i} <@U1>",
        "ts": f"170047110{i}.000100",
        "thread_ts": "1700471100.000100",
        "blocks": [{"type": "rich_text", "elements": [{"type": "text", "text": "x"}]}],
        "user_profile": {"real_name": "Ana", "display_name": "ana"},
    }
    for i in range(4)
]
MESSENGER = {
    "participants": [{"name": "Ana"}, {"name": "Ben"}],
    "messages": [
        {"sender_name": "Ana", "timestamp_ms": 1700471100000 + i, "content": f"t\u00c3\u00a9xt {i}", "type": "Generic"}
        for i in range(4)
    ],
    "title": "Team",
    "thread_path": "inbox/team_1",
}
TEXTS = {"ios.txt": WHATSAPP, "android.txt": ANDROID}
VALUES = {
    "telegram/result.json": TELEGRAM,
    "discord/general.json": DISCORD,
    "slack/general/2023-11-20.json": SLACK,
    "messenger/message_1.json": MESSENGER,
}


@pytest.mark.parametrize("name", TEXTS)
@fuzz
@given(seed=seeds)
def test_bytes_of_whatsapp(scratch: Path, name: str, seed: int) -> None:
    (scratch / name).write_bytes(damaged_bytes(Random(seed), TEXTS[name].encode()))
    survives(lambda: read_chats(scratch / name))


@pytest.mark.parametrize("name", VALUES)
@fuzz
@given(seed=seeds)
def test_bytes_of_an_export(scratch: Path, name: str, seed: int) -> None:
    path = _place(scratch, name, damaged_bytes(Random(seed), json_bytes(VALUES[name])))
    survives(lambda: read_chats(path))


@pytest.mark.parametrize("name", VALUES)
@fuzz
@given(seed=seeds)
def test_values_of_an_export(scratch: Path, name: str, seed: int) -> None:
    path = _place(scratch, name, json_bytes(damaged_json(Random(seed), VALUES[name])))
    survives(lambda: read_chats(path))


@pytest.mark.parametrize("name", [*TEXTS, *VALUES])
@fuzz
@given(seed=seeds)
def test_a_zip_of_an_export(scratch: Path, name: str, seed: int) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        inside = name.removeprefix("slack/")
        archive.writestr(inside, TEXTS[name].encode() if name in TEXTS else json_bytes(VALUES[name]))
    random, content = Random(seed), bytearray(out.getvalue())
    for _ in range(random.randint(1, 2)):  # more would leave few that are zip files
        content[random.randrange(len(content))] = random.choice((0, 1, 255, random.randrange(256)))
    (scratch / "export.zip").write_bytes(content)
    survives(lambda: read_chats(scratch / "export.zip"))


def _place(scratch: Path, name: str, content: bytes) -> Path:
    """Write an export; return the file, or of Slack the folder of all channels."""
    path = scratch / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path.parent.parent if name.startswith("slack") else path

"""Formats: detection by content, the newest messages in little memory, and refusal of unknown files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.chats.formats import Census, Choice, find_format, read_chats
from lora_ft.tasks.files import recipe_file

EXPORT = recipe_file("groupchat").with_suffix("") / "result.json"


def telegram(path: Path, *spoken: tuple[int, float, str]) -> Path:
    messages = [
        {"id": number, "type": "message", "date_unixtime": str(time), "from": "Ana", "text": text}
        for number, time, text in spoken
    ]
    path.write_text(json.dumps({"name": "Garden", "messages": messages}))
    return path


TEXTS = {
    "telegram": '{"name": "x", "type": "y", "id": 1, "messages": [{"id": 1, "type": "message"}]}',
    "telegram account": '{"about": "", "chats": {"list": []}}',
    "telegram sorted": '{"id": 1, "messages": [], "name": "x", "type": "y"}',
    "telegram invalid": '{"name": "\\x0C", "type": "y", "messages": []}',
    "telegram page": '<!DOCTYPE html><html><body><div class="page_wrap"></div></body></html>',
    "discord": '{"guild": {}, "channel": {}, "messages": []}',
    "discord text": 62 * "=" + "\nGuild: G\nChannel: c\n" + 62 * "=" + "\n",
    "discord table": "AuthorID,Author,Date,Content,Attachments,Reactions\n",
    "slack day": '[{"type": "message", "user": "U1", "ts": "1.0", "text": "x"}]',
    "slack dump": '{"channel_id": "C1", "name": "x", "messages": []}',
    "messenger": '{"participants": [], "messages": [{"sender_name": "A", "timestamp_ms": 1}], "title": "x"}',
    "messenger encrypted": '{"participants": ["A"], "threadName": "x_1", "messages": [{"senderName": "A"}]}',
    "signal": '{"date": "2024-01-01T00:00:00", "sender": "A", "body": "x", "quote": ""}\n',
    "signal backup": '{"version": "1", "backupTimeMs": "1"}\n{"account": {}}\n',
    "signal markdown": "[2024-01-01 10:00:00] Ana: hello  \n\n",
    "line": "[LINE] Chat history with Ana\nSaved on: 2024/01/15 10:30\n",
    "line bare": "2024/01/15(Mon)\n10:30\tAna\thello\n",
    "kakaotalk": "Ana 님과 카카오톡 대화\n저장한 날짜 : 2024-01-15 10:00:00\n",
    "kakaotalk bare": "2024년 1월 15일 오전 10:30, Ana : hello\n",
    "kakaotalk computer": "--------------- 2024년 1월 15일 월요일 ---------------\n[Ana] [오전 10:30] hello\n",
    "kakaotalk table": 'Date,User,Message\n2024-01-15 10:30:00,"Ana","hello"\n',
    "whatsapp": "15.01.24, 10:30 - Ana: hello\n",
    "whatsapp ios": "[2024-01-15 10:30:00] Ana: hello\n",
    "whatsapp arabic": "\u200f15\u200f/1\u200f/2024\u060c 10:30 \u0645 - Ana: hello\n",
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", ["export", "chat.txt", "a.json", "b.html"])
def test_format_is_detected_by_the_content_of_a_file(tmp_path: Path, kind: str, name: str) -> None:
    for mark in ("", "\ufeff"):
        (tmp_path / name).write_text(mark + TEXTS[kind], encoding="utf-8")
        assert find_format(tmp_path / name) == kind.split()[0]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["result.json", "photos/x.jpg"], "telegram"),
        (["messages.html", "messages2.html", "css/style.css"], "telegram"),
        (["export_results.html", "chats/chat_001/messages.html"], "telegram"),
        (["users.json", "channels.json", "general/2024-01-01.json"], "slack"),
        (["2024-01-01.json"], "slack"),
        (["your_facebook_activity/messages/inbox/garden_1/message_1.json"], "messenger"),
        (["Ana/chat.md", "Ana/index.html", "Ben/chat.md"], "signal"),
        (["main.jsonl", "files/1.jpg"], "signal"),
    ],
)
@pytest.mark.parametrize("form", ["folder", "zip", "zip with a top folder"])
def test_format_is_detected_by_the_files_of_a_folder(
    tmp_path: Path, files: list[str], expected: str, form: str
) -> None:
    top = tmp_path / "export"
    for name in files:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("x")
    if form == "folder":
        assert find_format(top) == expected
        return
    with zipfile.ZipFile(tmp_path / "export.ZIP", "w") as archive:
        for name in files:
            archive.writestr(f"export/{name}" if "top" in form else name, "x")
        archive.writestr("__MACOSX/._x", "x")
    assert find_format(tmp_path / "export.ZIP") == expected


def test_zip_with_a_text_file_is_whatsapp(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("_chat.txt", "x")
    assert find_format(tmp_path / "w.zip") == "whatsapp"


@pytest.mark.parametrize(
    ("content", "program"),
    [
        ('{"userId": "8:a", "exportDate": "x", "conversations": []}', "Skype or Teams"),
        ('{"@odata.context": "x", "value": []}', "Microsoft Teams"),
        ('{"room_name": "x", "messages": []}', "Matrix (Element)"),
        ('{"messages": [{"creator": {"name": "A"}, "text": "x"}]}', "Google Chat"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "a chat model"),
        ("<html><body><div class=chatlog__message></div></body></html>", "DiscordChatExporter's HTML"),
        ('<html><body><div class="_a6-g">x</div></body></html>', "Messenger's or Instagram's HTML"),
        ("Nov 20, 2023  9:00:00 AM\nAna\nhello\n", "iMessage (imessage-exporter)"),
        ("Conversation: Ana (+49)\n\nFrom: Ana\n", "Signal by sigtop"),
        ("<?xml version='1.0'?>\n<smses count='1'>", "SMS Backup & Restore"),
        ("09:00:00\t From Ana to Everyone:\n\thello", "Zoom"),
    ],
)
def test_unsupported_program_is_named(tmp_path: Path, content: str, program: str) -> None:
    (tmp_path / "chat.txt").write_text(content)
    with pytest.raises(UsageError, match=re.escape(f"chat.txt is an export of {program}, which is not supported; ")):
        read_chats(tmp_path / "chat.txt")


@pytest.mark.parametrize(
    ("name", "content", "kind", "part"),
    [
        (
            "rows.jsonl",
            "{}",
            UsageError,
            "is not a known export of a chat; use an export of telegram, whatsapp, slack",
        ),
        ("rows.json", '[{"text": "x"}]', UsageError, "is not a known export of a chat"),
        ("other.json", '{"text": "x"}', UsageError, "is not a known export of a chat"),
        ("wrapped.json", '{"messages": [{"id": 1, "type": "spam", "text": "x"}]}', UsageError, "is not a known export"),
        ("times.json", '[{"ts": 5, "type": "fault", "text": "x"}]', UsageError, "is not a known export of a chat"),
        ("events.json", '[{"ts": "2024-01-15", "type": "message", "text": "x"}]', UsageError, "is not a known export"),
        ("picture.txt", "\x89PNG\0\0", UsageError, "is not a known export of a chat"),
        ("notes.md", "nothing", UsageError, "is not a known export of a chat"),
        ("cut.json", '{"name": "x", ', LoraFtError, "cut.json, after 1 objects, is cut off"),
        ("page.json", "<html>", UsageError, "page.json is not a known export of a chat"),
        ("cut.zip", "PK", LoraFtError, "cut.zip is not a complete zip file"),
        ("empty.json", '{"messages": []}', UsageError, "empty.json has no messages of telegram"),
        ("deep.json", 200_000 * "[", LoraFtError, "deep.json is out of bounds at byte 200 (nested deeper"),
        ("long.json", "[" + 4301 * "1", LoraFtError, "long.json is out of bounds at byte 1 (a number of more than"),
    ],
    ids=range(14),
)
def test_unknown_or_damaged_file_is_refused(
    tmp_path: Path, name: str, content: str, kind: type[LoraFtError], part: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(kind, match=re.escape(part)) as caught:
        read_chats(tmp_path / name)
    assert type(caught.value) is kind


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a known export of a chat"):
        read_chats(tmp_path)


def test_format_of_the_task_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "export.log").write_text("31.12.23, 22:15 - Ana: hello\n")
    assert [message.text for message in read_chats(tmp_path / "export.log", "whatsapp")["export.log"]] == ["hello"]


def test_newest_messages_are_sorted_by_time_then_by_file(tmp_path: Path) -> None:
    spoken = [(1, 50, "c"), (2, 10, "a"), (3, 70, "e"), (4, 60, "d1"), (5, 60, "d2"), (6, 20, "b")]
    file = telegram(tmp_path / "result.json", *spoken)
    texts = lambda keep: [message.text for message in read_chats(file, keep=keep)["Garden"]]  # noqa: E731
    assert texts(100) == ["a", "b", "c", "d1", "d2", "e"] and texts(3) == ["d1", "d2", "e"]


def test_whatsapp_messages_keep_the_order_of_the_file_when_the_clock_goes_back(tmp_path: Path) -> None:
    lines = [f"31.12.23, {clock} - Ana: {text}" for clock, text in (("02:59", "a"), ("02:00", "b"), ("02:01", "c"))]
    (tmp_path / "chat.txt").write_text("\n".join(lines))
    texts = lambda keep: [message.text for message in read_chats(tmp_path / "chat.txt", keep=keep)["chat"]]  # noqa: E731
    assert texts(10) == ["a", "b", "c"] and texts(2) == ["b", "c"]


def test_chats_are_chosen_by_name(tmp_path: Path) -> None:
    chats: list[dict[str, Any]] = [
        {"name": name, "messages": [{"id": 1, "type": "message", "date_unixtime": "1", "from": "Ana", "text": name}]}
        for name in ("Garden", "Work")
    ]
    (tmp_path / "result.json").write_text(json.dumps({"chats": {"list": chats}}))
    assert list(read_chats(tmp_path / "result.json")) == ["Garden", "Work"]
    assert list(read_chats(tmp_path / "result.json", choice=Choice(["Work"]))) == ["Work"]
    with pytest.raises(UsageError, match=r"has no chat of data\.chat\.only = \['Home'\]; use names among Garden, Work"):
        read_chats(tmp_path / "result.json", choice=Choice(["Home"]))


PEAK = """
import pathlib, re, sys
from lora_ft.data.chats.formats import read_chats
found = read_chats(pathlib.Path(sys.argv[1]), keep=500)
print(len(next(iter(found.values()))), re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of another process is read from /proc")
@pytest.mark.parametrize("kind", ["json", "txt"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str) -> None:
    peaks = []
    for megabytes in (1, 60):
        file = tmp_path / f"{megabytes}.{kind}"
        with open(file, "w") as out:
            out.write('{"name": "Big", "messages": [' if kind == "json" else "31.12.23, 22:15 - Ana: first\n")
            for i in range(megabytes * 4000):
                text = f"message {i} " + 150 * "x"
                if kind == "json":
                    entry = {"id": i, "type": "message", "date_unixtime": str(i), "from": "Ana", "text": text}
                    out.write(json.dumps(entry) + ",\n")
                else:
                    out.write(f"31.12.23, 22:15 - Ana: {text}\nand another line of it {50 * 'y'}\n")
            out.write('{"id": "last"}]}' if kind == "json" else "")
        assert file.stat().st_size > 0.9e6 * megabytes
        process = subprocess.run([sys.executable, "-c", PEAK, str(file)], capture_output=True, text=True, check=True)
        count, peak = map(int, process.stdout.split())
        assert count == 500
        peaks.append(peak / 1024)
    assert peaks[1] - peaks[0] < 8  # MB, for 59 MB more of messages


def test_excluded_messages_are_counted(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [{}, {"forwarded_from": "News"}, {"via_bot": "@gif"}, {"from": "Combot"}, {}]
    messages = [
        {"id": i, "type": "message", "date_unixtime": "1", "from": "Ana", "text": "x", **k} for i, k in enumerate(kinds)
    ]
    (tmp_path / "result.json").write_text(json.dumps({"name": "Garden", "messages": messages}))
    census = Census()
    chats = read_chats(tmp_path / "result.json", choice=Choice(leave_out={"Combot"}), census=census)
    assert len(chats["Garden"]) == 2 and census.people == {"Ana", "Combot"}
    assert census.left_out == {"forwarded": 1, "of bots": 1, "of people in leave_out": 1}

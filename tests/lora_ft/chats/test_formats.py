"""Formats: found by name and first keys; the newest messages kept, in little memory; wrong files named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from export.errors import LoraFtError, UsageError
from lora_ft.chats.formats import Choice, find_format, read_chats
from lora_ft.taskfile import recipe_file

EXPORT = recipe_file("groupchat").with_suffix("") / "result.json"


def telegram(path: Path, *spoken: tuple[int, float, str]) -> Path:
    messages = [
        {"id": number, "type": "message", "date_unixtime": str(time), "from": "Ana", "text": text}
        for number, time, text in spoken
    ]
    path.write_text(json.dumps({"name": "Garden", "messages": messages}))
    return path


def test_formats_are_found(tmp_path: Path) -> None:
    assert find_format(EXPORT) == "telegram" and find_format(tmp_path) == "slack"
    for name, content, expected in (
        ("account.json", {"about": "", "chats": {"list": []}}, "telegram"),
        ("discord.json", {"guild": {}, "channel": {}, "messages": []}, "discord"),
    ):
        (tmp_path / name).write_text(json.dumps(content))
        assert find_format(tmp_path / name) == expected
    (tmp_path / "chat.txt").write_text("x")
    assert find_format(tmp_path / "chat.txt") == "whatsapp"
    for name, entry, expected in (("w.zip", "_chat.txt", "whatsapp"), ("s.zip", "users.json", "slack")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(entry, "x")
        assert find_format(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "kind", "part"),
    [
        ("rows.jsonl", "{}", UsageError, "is no export of a chat that is known; data.chat.format: telegram, whatsapp"),
        ("rows.json", '[{"text": "x"}]', UsageError, "is no export of a chat that is known"),
        ("other.json", '{"text": "x"}', UsageError, "is no export of a chat that is known"),
        ("cut.json", '{"name": "x", ', LoraFtError, "cut.json, after 1 objects, is cut off"),
        ("page.json", "<html>", LoraFtError, "page.json, after 0 objects, is not JSON"),
        ("cut.zip", "PK", LoraFtError, "cut.zip is no whole zip file"),
        ("empty.json", '{"messages": []}', UsageError, "empty.json holds no messages of telegram"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, content: str, kind: type[LoraFtError], part: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(kind, match=re.escape(part)) as caught:
        read_chats(tmp_path / name)
    assert type(caught.value) is kind


def test_a_format_that_is_named_is_taken(tmp_path: Path) -> None:
    (tmp_path / "export.log").write_text("31.12.23, 22:15 - Ana: hello\n")
    assert [message.text for message in read_chats(tmp_path / "export.log", "whatsapp")["export.log"]] == ["hello"]


def test_the_newest_are_kept_in_order_of_time_then_of_the_export(tmp_path: Path) -> None:
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
    with pytest.raises(UsageError, match=r"has no chat of data\.chat\.only = \['Home'\]; it has Garden, Work"):
        read_chats(tmp_path / "result.json", choice=Choice(["Home"]))


PEAK = """
import pathlib, re, sys
from lora_ft.chats.formats import read_chats
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
                    one = {"id": i, "type": "message", "date_unixtime": str(i), "from": "Ana", "text": text}
                    out.write(json.dumps(one) + ",\n")
                else:
                    out.write(f"31.12.23, 22:15 - Ana: {text}\nand another line of it {50 * 'y'}\n")
            out.write('{"id": "last"}]}' if kind == "json" else "")
        assert file.stat().st_size > 0.9e6 * megabytes
        done = subprocess.run([sys.executable, "-c", PEAK, str(file)], capture_output=True, text=True, check=True)
        count, peak = map(int, done.stdout.split())
        assert count == 500
        peaks.append(peak / 1024)
    assert peaks[1] - peaks[0] < 8  # MB, for 59 MB more of messages

"""Chats in the report of `validate`: messages, people, first and last day, and doubts."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.cli.tables import show_validation
from lora_ft.data.chats.summary import ChatSummary
from lora_ft.data.splits import load_splits
from lora_ft.tasks.files import load_task
from lora_ft.validate import Validation, validate

MakeTask = Callable[..., Path]
PROMPT = "Continue: {context}"
WHATSAPP = "\n".join(
    f"{day:02}/11/2023, 20:{minute:02} - {name}: text {minute}"
    for day in (12, 13, 14)
    for minute in range(4)
    for name in ("Ana", "Ben")
)


def chat_task(make_task: MakeTask, folder: Path, content: str, name: str = "Garden.txt", **data: Any) -> Path:
    (folder / "task-tiny").mkdir(exist_ok=True)
    (folder / "task-tiny" / name).write_text(content)
    source = {"train": name, "validation": None, "test": None, "target": "response", "chat": {}}
    return make_task(prompt=PROMPT, data={**source, **data})


def test_every_chat_is_shown_once(make_task: MakeTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = chat_task(make_task, tmp_path, WHATSAPP, split={"validation": 0.3, "test": 0.3})
    report = validate(str(path))
    first, last = datetime.date(2023, 11, 12), datetime.date(2023, 11, 14)
    place = f"{tmp_path / 'task-tiny' / 'Garden.txt'} Garden"
    assert report.chats == [ChatSummary(place, 24, 2, first, last)] and report.errors == []
    show_validation(report)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "Garden.txt" in line)
    assert line.split()[-4:] == ["24", "2", "2023-11-12", "2023-11-14"]


def test_chats_of_other_programs_are_shown(make_task: MakeTask, tmp_path: Path) -> None:
    messages = ", ".join(
        f'{{"id": {at}, "type": "message", "date_unixtime": "{at * 86400}", "from": "A{at % 3}", "text": "x"}}'
        for at in range(1, 9)
    )
    path = chat_task(make_task, tmp_path, f'{{"name": "Work", "messages": [{messages}]}}', "result.json")
    (chat,) = validate(str(path)).chats
    assert (chat.messages, chat.people, str(chat.first), str(chat.last)) == (8, 3, "1970-01-02", "1970-01-09")


def test_many_chats_take_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    day = datetime.date(2023, 11, 12)
    chats = [ChatSummary(f"chat {at}", at, 2, day, day + datetime.timedelta(days=at)) for at in range(100)]
    show_validation(Validation("many", [], chats=chats))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 23 and lines[21].split() == ["…", "80", "more", "4,760", "2023-11-12", "2024-02-19"]


@pytest.mark.parametrize(
    ("content", "doubt"),
    [
        (WHATSAPP, None),
        (WHATSAPP.replace("13/11", "12/11").replace("14/11", "12/11"), "fit several orders; they are read as day, mon"),
        (f"{WHATSAPP}\n[18/10/2023, 22:15] Carl: x", "1 heads inside messages are read as pasted text"),
    ],
)
def test_ambiguous_parts_are_reported(make_task: MakeTask, tmp_path: Path, content: str, doubt: str | None) -> None:
    warnings = load_splits(load_task(str(chat_task(make_task, tmp_path, content)))).warnings
    assert [warning for warning in warnings if "Garden.txt" in warning] == warnings
    assert len(warnings) == 0 if doubt is None else doubt in warnings[0]

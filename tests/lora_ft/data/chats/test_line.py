"""LINE's text exports: clocks and dates by language, texts of several lines, LINE's own words, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.chats.line import read_line
from lora_ft.data.chats.message import Message

DAY = 1700438400.0  # 2023-11-20


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def texts(path: Path) -> list[str]:
    return [message.text for _, message in read_line(path)]


@pytest.mark.parametrize(
    ("title", "date", "times"),
    [
        ("[LINE] Chat history with Garden", "2023/11/20(Mon)", ("09:00", "21:30")),
        ("[LINE] Chat history in Garden", "2023.11.20 Monday", ("9:00 AM", "9:30 PM")),
        ("[LINE] Chat history with Garden", "Mon, 11/20/2023", ("9:00AM", "9:30PM")),
        ("Chat history with Garden", "Mon, 20/11/2023", ("09:00", "21:30")),
        ("[LINE] Gardenとのトーク履歴", "2023/11/20(月)", ("午前9:00", "午後9:30")),
        ("[LINE] Gardenのトーク履歴", "2023/11/20(月)", ("09:00", "21:30")),
        ("[LINE] 與Garden的聊天記錄", "2023/11/20（一）", ("上午09:00", "下午09:30")),
        ("[LINE] Garden님과의 대화", "2023.11.20 월요일", ("오전 9:00", "오후 9:30")),
        ("[LINE] ประวัติการแชทกับ Garden", "2023/11/20 จันทร์", ("09:00", "21:30")),
        ("[LINE] ประวัติการแชทกับ Garden", "2566/11/20 จันทร์", ("09:00", "21:30")),
    ],
)
def test_languages_and_clocks(tmp_path: Path, title: str, date: str, times: tuple[str, str]) -> None:
    lines = [title, "Saved on: 2023/11/21 10:00", "", date, f"{times[0]}\tAna\thello", f"{times[1]}\tBen O\ta\tb", ""]
    text = "\ufeff" + "\r\n".join(lines)
    assert list(read_line(write(tmp_path / "x.txt", text))) == [
        ("Garden", Message("5", DAY + 9 * 3600, "Ana", "hello")),
        ("Garden", Message("6", DAY + 21.5 * 3600, "Ben O", "a\tb")),
    ]


def test_midnight_and_noon_on_a_12_hour_clock(tmp_path: Path) -> None:
    text = "2023/11/20(月)\n午前12:05\tAna\ta\n午後12:05\tAna\tb\n"
    assert [message.time - DAY for _, message in read_line(write(tmp_path / "x.txt", text))] == [300, 12 * 3600 + 300]


def test_text_of_several_lines_is_unquoted(tmp_path: Path) -> None:
    text = (
        '2023/11/20(Mon)\n09:00\tAna\t"one ""x""\n\n10:30 meet me"\n09:01\tBen\t"quoted"\n09:02\tBen\tplain\nmore\n\n'
    )
    assert texts(write(tmp_path / "x.txt", text)) == ['one "x"\n\n10:30 meet me', '"quoted"', "plain\nmore"]


def test_a_date_in_a_message_is_text(tmp_path: Path) -> None:
    meeting = "meet\n\n2023/12/24(Sun)\n10:00 station\n2023/12/25(Mon)"
    text = f'2023/11/20(Mon)\n09:00\tAna\t"{meeting}"\n09:01\tBen\tok\n\n2023/11/21(Tue)\n09:02\tAna\tbye\n'
    first, second, third = (message for _, message in read_line(write(tmp_path / "x.txt", text)))
    assert first.text == meeting and second.time == DAY + 9 * 3600 + 60 and third.time == DAY + 33 * 3600 + 120


def test_messages_of_line_are_left_out(tmp_path: Path) -> None:
    placeholders = ["[Sticker]", "[スタンプ]", "[貼圖]", "[Voice message]", "☎ Call time 0:45", "Ana unsent a message."]
    lines = [f"09:00\tAna\t{text}" for text in placeholders]
    notices = ["09:01\tAna joined the group.", "09:01\t\tAna已加入群組", "09:02\tAna\t[Photo] of it", "09:03\tAna\tok"]
    assert texts(write(tmp_path / "x.txt", "\n".join(["2023/11/20(Mon)", *lines, *notices]))) == ["[Photo] of it", "ok"]


@pytest.mark.parametrize(
    ("text", "kind", "part"),
    [
        ("[LINE] Chat history with A\n09:00\tAna\thello\n", LoraFtError, r"x\.txt:2 is a message before any date"),
        ("2023/11/20(Mon)\nsáng 9:00\tAna\thi\n", LoraFtError, r"x\.txt:2 has an unknown form of time"),
        ("2023/11/20(Mon)\n13:00 PM\tAna\thi\n", LoraFtError, r"x\.txt:2 has no time that can be read"),
        ("2023.11.20 Monday\n09:00 Ana hello you\n", UsageError, r"x\.txt:2 is from LINE on a computer"),
        ("Mon, 11/11/2024\n", type(None), ""),
        ("Tue, 11/12/2024\nTue, 12/11/2024\n", UsageError, r"ambiguous order of day and month"),
    ],
)
def test_unreadable_line_is_refused_with_its_number(tmp_path: Path, text: str, kind: type, part: str) -> None:
    file = write(tmp_path / "x.txt", text)
    if kind is type(None):
        assert texts(file) == []
        return
    with pytest.raises(kind, match=part):
        texts(file)

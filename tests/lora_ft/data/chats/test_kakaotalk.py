"""KakaoTalk's exports: Android, iOS and computers, Korean and English, CSV; notices and placeholders left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ft.core.errors import LoraFtError
from lora_ft.data.chats.kakaotalk import read_kakaotalk

DAY = 1700438400.0  # 2023-11-20
ANDROID_KO = """Garden 님과 카카오톡 대화
저장한 날짜 : 2023년 11월 21일 오전 10:00

2023년 11월 20일 오전 9:00
2023년 11월 20일 오전 9:00, Ana : hello
2023년 11월 20일 오후 9:30
2023년 11월 20일 오후 9:30, Ben O : a : b
more
2023년 11월 20일 오후 9:31, Cleo님이 들어왔습니다.
2023년 11월 20일 오후 9:31, Ana : 사진
"""
ANDROID_EN = """KakaoTalk Chats with Garden
Date Saved : November 21, 2023 at 10:00 AM

November 20, 2023 at 9:00 AM, Ana : hello
Nov 20, 2023, 9:30\u202fPM, Ben O : a : b
more
November 20, 2023 at 9:31 PM, Cleo joined this chatroom.
November 20, 2023 at 9:31 PM, Ana : Photo
"""
IOS_KO = """Garden 님과 카카오톡 대화
저장한 날짜 : 2023. 11. 21. 오전 10:00

2023년 11월 20일 월요일
2023. 11. 20. 오전 9:00, Ana : hello
2023. 11. 20. 21:30, Ben O : a : b
more
2023. 11. 20. 오후 9:31: Cleo님이 나갔습니다.
2023. 11. 20. 오후 9:31, Ana : 이모티콘
"""
PC_KO = """Garden 님과 카카오톡 대화
저장한 날짜 : 2023-11-21 10:00:00

--------------- 2023년 11월 20일 월요일 ---------------
[Ana] [오전 9:00] hello
[Ben O] [오후 9:30] a : b
more
Cleo님이 들어왔습니다.
[Ana] [오후 9:31] 동영상
"""
PC_EN = """Garden with KakaoTalk Chats
Date Saved : 2023-11-21 10:00:00

--------------- Monday, November 20, 2023 ---------------
[Ana] [9:00 AM] hello
[Ben O] [9:30 PM] a : b
more
Ana left.
[Ana] [9:31 PM] This message was deleted.
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", [ANDROID_KO, ANDROID_EN, IOS_KO, PC_KO, PC_EN], ids=range(5))
def test_programs_and_languages(tmp_path: Path, text: str) -> None:
    messages = list(read_kakaotalk(write(tmp_path / "x.txt", text)))
    assert [(chat, message.sender, message.text, message.time - DAY) for chat, message in messages] == [
        ("Garden", "Ana", "hello", 9 * 3600),
        ("Garden", "Ben O", "a : b\nmore", 21.5 * 3600),
    ]


@pytest.mark.parametrize("text", [ANDROID_KO, IOS_KO])
@pytest.mark.parametrize("date", ["2023년 12월 24일 오후 6:00", "2023년 12월 24일 일요일"])
def test_a_date_in_a_message_is_text(tmp_path: Path, text: str, date: str) -> None:
    file = write(tmp_path / "x.txt", text.replace("more\n", f"{date}\n{date}\nstation\n"))
    assert [message.text for _, message in read_kakaotalk(file)] == ["hello", f"a : b\n{date}\n{date}\nstation"]


def test_midnight_and_noon(tmp_path: Path) -> None:
    lines = ["[A] [오전 12:05] a", "[A] [오후 12:05] b", "[A] [오전 0:05] c", "[A] [13:05] d"]
    text = "\n".join(["--------------- 2023년 11월 20일 월요일 ---------------", *lines])
    times = [message.time - DAY for _, message in read_kakaotalk(write(tmp_path / "x.txt", text))]
    assert times == [300, 12 * 3600 + 300, 300, 13 * 3600 + 300]


def test_a_table_is_read(tmp_path: Path) -> None:
    notice = '2023-11-20 09:01:00,"Ben","Ben님이 나갔습니다."'
    rows = f'Date,User,Message\n2023-11-20 09:00:00,"Ana","hello ""you""\nmore"\n{notice}\n'
    ((chat, message),) = read_kakaotalk(write(tmp_path / "x.csv", rows))
    assert (chat, message.sender, message.text, message.time) == ("x", "Ana", 'hello "you"\nmore', DAY + 9 * 3600)


def test_messages_that_resemble_notices_stay(tmp_path: Path) -> None:
    text = PC_EN.replace("more\n", "Everybody left.\n").replace("hello", "Ben님이 나갔습니다")
    texts = [message.text for _, message in read_kakaotalk(write(tmp_path / "x.txt", text))]
    assert texts == ["Ben님이 나갔습니다", "a : b\nEverybody left."]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[Ana] [오전 9:00] hello\n", r"x\.txt:1 is a message before any date"),
        ("2023년 13월 20일 오전 9:00, Ana : hello\n", r"x\.txt:1 has no date that can be read"),
        ("2023년 11월 20일 오후 13:00, Ana : hello\n", r"x\.txt:1 has no time that can be read"),
        ("Date,User,Message\nsoon,Ana,hello\n", r"x\.txt:2, has no date that can be read \(Date: soon\)"),
    ],
)
def test_unreadable_line_is_refused_with_its_number(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(LoraFtError, match=part):
        list(read_kakaotalk(write(tmp_path / "x.txt", text)))

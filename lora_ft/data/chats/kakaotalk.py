"""Reader of KakaoTalk's exports in Korean and English: text from Android, iOS and computers, and CSV from macOS.

A date within a message (an appointment) is a heading only if a message follows.
"""

from __future__ import annotations

import calendar
import datetime
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lora_ft.core.errors import LoraFtError
from lora_ft.data.chats.dates import hour_of, month_of
from lora_ft.data.chats.fields import Fields
from lora_ft.data.chats.message import Message, clean_name, clean_text
from lora_ft.data.chats.places import File, followed, table, text_lines

COLUMNS = ("Date", "User", "Message")
_TITLE = re.compile(
    r"(?P<ko>.+?) ?님과(?:의)? ?카카오톡 ?대화|KakaoTalk Chats with (?P<to>.+)|(?P<of>.+?) (?:with )?KakaoTalk Chats"
)
_SAVED = re.compile(r"(?:저장한 ?날짜|Date Saved|Saved Date) ?:.*")
_DAY = (
    r"(?:(?P<y1>\d{4})년 ?(?P<m1>\d{1,2})월 ?(?P<d1>\d{1,2})일"
    r"|(?P<y2>\d{4})[.-] ?(?P<m2>\d{1,2})[.-] ?(?P<d2>\d{1,2})\.?"
    r"|(?P<m3>[A-Z][a-z]{2,8})\.? (?P<d3>\d{1,2}), (?P<y3>\d{4})"
    r"|(?P<d4>\d{1,2}) (?P<m4>[A-Z][a-z]{2,8})\.? (?P<y4>\d{4}))"
)
_CLOCK = (
    r"(?:(?P<before>오전|오후|AM|PM) ?)?(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::\d{2})?"
    r"(?:[ \u00a0\u202f]?(?P<after>[AaPp])\.?[Mm]\.?)?"
)
_HEADING = re.compile(rf"(?:-{{3,}} ?)?(?:[A-Za-z]+, )?{_DAY},? ?(?:[가-힣]요일|[A-Za-z]+)?(?: ?-{{3,}})?")
_MOBILE = re.compile(rf"{_DAY}(?:,| at)? {_CLOCK}(?:(?P<mark>,|:) ?(?P<rest>.*))?")
_COMPUTER = re.compile(rf"\[(?P<name>[^\n]{{1,100}}?)\] \[{_CLOCK}\] ?(?P<text>.*)")
_HALVES = {"오전": "a", "AM": "a", "오후": "p", "PM": "p"}
# Placeholders of KakaoTalk for a photo, sticker, call, file or deleted message.
_OWN = re.compile(
    r"사진(?: \d+장)?|동영상|이모티콘|음성 ?메시지|삭제된 메시지입니다\.?"
    r"|(?:보이스톡|페이스톡|그룹콜|라이브톡|그룹 ?통화)[^\n]{0,40}"
    r"|(?:파일|지도|연락처|선물|투표|일정|샵검색|톡게시판)[^\n]{0,3}: ?[^\n]{1,200}"
    r"|(?:메시지가 )?삭제되었습니다\.?|채팅방 관리자가 메시지를 가렸습니다\.?"
    r"|Photos?|\d+ photos|[Vv]ideos?|Emoticons?|Stickers?|Voice (?:Note|Message|note|message)"
    r"|This message was deleted\.?"
    r"|(?:Voice Call|Video Call|Live Talk|Group Call)[^\n]{0,40}|(?:File|Map|Contact|Gift|Poll): ?[^\n]{1,200}"
)
_KOREAN_NOTICES = (
    "들어왔습니다",
    "나갔습니다",
    "초대하였습니다",
    "초대했습니다",
    "내보냈습니다",
    "되었습니다",
    "변경했습니다",
    "설정했습니다",
)
_ENGLISH_NOTICE = re.compile(r"(.{1,60}?) (?:(?:left|joined)(?: this chatroom)?|invited .{1,300})\.")


def is_kakaotalk(start: str) -> bool:
    """Return whether a text begins like an export of KakaoTalk."""
    lines = [line.strip() for line in start.splitlines()[:200]]
    if lines and lines[0].replace('"', "") == "Date,User,Message":
        return True
    titled = any(_TITLE.fullmatch(line) or _SAVED.fullmatch(line) for line in lines[:3])
    titled = titled or any(line.startswith("---") and _HEADING.fullmatch(line) for line in lines)
    return titled or any(
        (match["rest"] or "").partition(" : ")[1] for line in lines if (match := _mobile(line)) is not None
    )


def is_kakaotalk_table(file: File) -> bool:
    """Return whether a file begins like a CSV export of KakaoTalk."""
    with file.open("rb") as content:
        header = content.read(100).removeprefix(b"\xef\xbb\xbf").replace(b'"', b"").splitlines()[:1]
    return header == [",".join(COLUMNS).encode()]


def read_kakaotalk(file: File) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) for every message with a text. A message's id is its line number.

    Raises:
        LoraFtError: A date or time cannot be read.
    """
    return _table(file) if is_kakaotalk_table(file) else _text(file)


def _table(file: File) -> Iterator[tuple[str, Message]]:
    chat = clean_name(Path(file.name).stem)
    for number, (date, user, content) in table(file, COLUMNS):
        time = Fields({"Date": date}, f"{file}:{number}", "KakaoTalk").date("Date")
        entry = _Entry(number, time, clean_name(user))
        if _is_notice(content, {entry.sender}):  # a notice has the form of a message
            continue
        message = _message(entry, [content], set())
        if message is not None:
            yield chat, message


class _Entry(NamedTuple):
    """Head of a message: line number, time in seconds, and sender, which is "" for a notice of KakaoTalk."""

    number: int
    time: float
    sender: str


def _text(file: File) -> Iterator[tuple[str, Message]]:
    chat = clean_name(Path(file.name).stem)
    day: datetime.date | None = None
    entry: _Entry | None = None
    lines: list[str] = []
    people: set[str] = set()
    for number, line, following in followed(text_lines(file)):
        if number <= 3 and entry is None and (title := _TITLE.fullmatch(line.strip())):
            chat = clean_name(next(filter(None, title.groups()), chat))
            continue
        if number <= 4 and entry is None and _SAVED.fullmatch(line.strip()):
            continue
        where = f"{file}:{number}"
        heading = _HEADING.fullmatch(line.strip()) if _is_heading(line) else None
        mobile = _mobile(line) if heading is None else None
        bare = heading is not None or (mobile is not None and not mobile["mark"])
        if bare and entry is not None and not line.startswith("---") and not _may_follow(following):
            heading = mobile = None
        computer = _COMPUTER.fullmatch(line) if heading is None and mobile is None else None
        if heading is None and mobile is None and computer is None:
            lines.append(line)
            continue
        if (message := _message(entry, lines, people)) is not None:
            yield chat, message
        entry, lines = None, []
        if heading is not None:
            day = _day(heading, where)
        elif mobile is not None:
            name, colon, text = (mobile["rest"] or "").partition(" : ")
            spoken = bool(colon) and mobile["mark"] == ","  # otherwise a notice, or a time alone before a new day
            time = _time(mobile, _day(mobile, where), where)
            entry, lines = _Entry(number, time, clean_name(name) if spoken else ""), [text]
        elif computer is not None:
            if day is None:
                raise LoraFtError(f"{where} is a message before any date", "export the chat again")
            entry, lines = _Entry(number, _time(computer, day, where), clean_name(computer["name"])), [computer["text"]]
        if entry is not None and entry.sender:
            people.add(entry.sender)
    if (message := _message(entry, lines, people)) is not None:
        yield chat, message


def _is_heading(line: str) -> bool:
    """Return whether a line may be a date heading: between dashes on computers, with a weekday on phones."""
    text = line.strip()
    return text.startswith("---") or text.endswith("요일") or re.fullmatch(rf"[A-Za-z]+, {_DAY}", text) is not None


def _may_follow(line: str) -> bool:
    """Return whether a line, or the end of the file, may follow a date on a phone."""
    head = _mobile(line)
    return not line or (head is not None and bool(head["mark"]))


def _mobile(line: str) -> re.Match[str] | None:
    """Return the match of a head in a phone's export, or None. A head with a colon after its clock is a notice."""
    return _MOBILE.fullmatch(line)


def _day(match: re.Match[str], where: str) -> datetime.date:
    groups = match.groupdict()
    kind = next(kind for kind in "1234" if groups[f"y{kind}"])
    month = groups[f"m{kind}"]
    number = int(month) if month.isdecimal() else month_of(month)
    try:
        if number is None:
            raise ValueError(month)
        return datetime.date(int(groups[f"y{kind}"]), number, int(groups[f"d{kind}"]))
    except ValueError as error:
        raise LoraFtError(f"{where} has no date that can be read ({match[0][:40]})", "export the chat again") from error


def _time(match: re.Match[str], day: datetime.date, where: str) -> float:
    half = _HALVES.get(match["before"] or "", (match["after"] or "").lower())
    hour, minute = int(match["hour"]), int(match["minute"])
    of_day = hour if half and hour == 0 else hour_of(hour, half)  # accepts 오전 0:05
    if of_day is None or minute > 59:
        raise LoraFtError(f"{where} has no time that can be read ({match[0][:40]})", "export the chat again")
    return float(calendar.timegm((day.year, day.month, day.day, of_day, minute, 0)))


def _message(entry: _Entry | None, lines: list[str], people: set[str]) -> Message | None:
    """Return a message, or None for a notice of KakaoTalk. `people` holds the senders so far."""
    if entry is None or not entry.sender:
        return None
    spoken = [line for place, line in enumerate(lines) if not (place and _is_notice(line, people))]
    text = clean_text("\n".join(spoken))
    if not text or _OWN.fullmatch(text):
        return None
    return Message(f"{entry.number}", entry.time, entry.sender, text)


def _is_notice(line: str, people: set[str]) -> bool:
    """Return whether a line of a computer's export is a notice, without a head, about people joining or leaving."""
    if line.rstrip(". ").endswith(_KOREAN_NOTICES) and ("님이 " in line or "님을 " in line) and "\n" not in line:
        return True
    match = _ENGLISH_NOTICE.fullmatch(line)
    return match is not None and clean_name(match[1]) in people

"""Reader of LINE's text export: date headings, each followed by messages as tab-separated time, name and text.

A date within a message (an appointment) is a heading only if a message follows.
"""

from __future__ import annotations

import calendar
import datetime
import re
from collections.abc import Iterator
from pathlib import Path

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.chats.dates import day_of, hour_of
from lora_ft.data.chats.message import Message, clean_name, clean_text
from lora_ft.data.chats.places import File, followed, text_lines

_TITLE = re.compile(
    r"(?:\[LINE\] ?)?(?:Chat history (?:with|in) (?P<en>.+)|(?P<ja>.+?)と?のトーク履歴"
    r"|[與与]?(?P<zh>.+?)的聊天[記记][錄录]"
    r"|ประวัติการ(?:แชท|สนทนา)กับ ?(?P<th>.+)|(?P<ko>.+?)님?과의? 대화|Riwayat obrolan dengan (?P<id>.+))"
)
_BANNER = "[LINE] "
_YEAR_FIRST = re.compile(r"(\d{4})[/.](\d{1,2})[/.](\d{1,2})\s*[(（]?[^\s\"]{0,20}[)）]?")
_YEAR_LAST = re.compile(r"([A-Za-z]{3,9}), ?(\d{1,2})/(\d{1,2})/(\d{4})")
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HALVES = {"上午": "a", "午前": "a", "오전": "a", "下午": "p", "午後": "p", "오후": "p"}
_ENTRY = re.compile(
    r"(?P<before>上午|下午|午前|午後|오전|오후)?\s?(\d{1,2}):(\d{2})\s?(?:(?P<after>[AaPp])\.?[Mm]\.?)?\t(?P<rest>.*)"
)
_UNKNOWN_ENTRY = re.compile(r"\S{0,12} ?\d{1,2}:\d{2} ?\S{0,12}\t.*\t.*")
_PC_ENTRY = re.compile(r"\d{1,2}:\d{2} \S+ \S.*")
# Placeholders of LINE for a sticker, photo, video, voice message, file, location, contact, album or note.
_PLACEHOLDERS = (
    "Photo|Photos|Image|Video|Videos|Sticker|Stickers|Voice message|Audio|File|Location|Contact|Album|Albums|Note|Notes"
    "|GIF|Gift|Poll|Payment|Emoji"
    "|写真|画像|動画|スタンプ|ボイスメッセージ|音声|ファイル|位置情報|連絡先|アルバム|ノート|ギフト|投票"
    "|照片|圖片|影片|貼圖|語音訊息|檔案|位置|位置訊息|位置資訊|聯絡資訊|相簿|記事本|禮物"
    "|图片|视频|贴图|语音信息|语音消息|文件|联系人|相册|记事本"
    "|사진|동영상|스티커|음성 메시지|파일|위치|위치 정보|연락처|앨범|노트"
    "|รูป|ภาพ|รูปภาพ|วิดีโอ|สติกเกอร์|สติ๊กเกอร์|ข้อความเสียง|ไฟล์|ตำแหน่ง|อัลบั้ม|โน้ต|Foto|Stiker|Lokasi"
)
_OWN = re.compile(
    rf"\[(?:{_PLACEHOLDERS})\]"
    r"|☎[^\n]*|\[null\][^\n]*maps\.google[^\n]*|(?:.{1,40} )?[Uu]nsent a message\.?|Message unsent\."
    r"|.{0,40}メッセージの送信を取り消しました|.{0,40}已收回訊息|.{0,40}撤回了一条消息"
    r"|.{0,40}메시지를 삭제했습니다\.?|.{0,40}ยกเลิกข้อความ"
)
_PROGRAM = "LINE"


def is_line(start: str) -> bool:
    """Return whether a text begins like an export of LINE."""
    lines = start.splitlines()[:200]
    first = next(iter(lines), "")
    dated = any(_YEAR_FIRST.fullmatch(line) or _YEAR_LAST.fullmatch(line) for line in lines)
    return (
        first.startswith(_BANNER)
        or _TITLE.fullmatch(first) is not None
        or (dated and any(map(_ENTRY.fullmatch, lines)))
    )


def read_line(file: File) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) for every message with a text. A message's id is its line number.

    Raises:
        UsageError: The file is from LINE on a computer, which does not mark the end of names, or its dates are
            ambiguous.
        LoraFtError: A line differs from LINE's format.
    """
    order = _order(file)
    chat = clean_name(Path(file.name).stem)
    day: datetime.date | None = None
    entry: tuple[int, float, str] | None = None
    lines: list[str] = []
    any_message = False
    for number, line, following in followed(text_lines(file)):
        if number == 1 and (title := _TITLE.fullmatch(line.strip())):
            chat = clean_name(next(filter(None, title.groups()), chat))
            continue
        heading = _heading(line, order)
        if heading is not None and any_message and not _may_follow(following, order):
            heading = None
        match = _ENTRY.fullmatch(line) if heading is None else None
        if heading is None and match is None:
            _refuse_unknown(file, number, line, is_first=day is not None and not any_message)
            lines.append(line)
            continue
        if (message := _message(entry, lines)) is not None:
            yield chat, message
        entry, lines = None, []
        if heading is not None:
            day = heading
        elif match is not None:
            if day is None:
                raise LoraFtError(f"{file}:{number} is a message before any date", "export the chat again")
            any_message = True
            entry, lines = _entry(match, day, file, number)
    if (message := _message(entry, lines)) is not None:
        yield chat, message


def _may_follow(line: str, order: str) -> bool:
    """Return whether a line, or the end of the file, may follow a date heading."""
    entry = _ENTRY.fullmatch(line) or _UNKNOWN_ENTRY.fullmatch(line)
    return not line or entry is not None or _heading(line, order) is not None


def _refuse_unknown(file: File, number: int, line: str, *, is_first: bool) -> None:
    """Raise an error for an unreadable line that looks like a message. `is_first` means no message since the date."""
    if _UNKNOWN_ENTRY.fullmatch(line):
        raise LoraFtError(
            f"{file}:{number} has an unknown form of time (got {line[:20]!r})", "set LINE to English and export again"
        )
    if is_first and _PC_ENTRY.fullmatch(line):
        raise UsageError(
            f"{file}:{number} is from LINE on a computer, which does not mark the end of names (got {line[:20]!r})",
            "export the chat on a phone",
        )


def _entry(
    match: re.Match[str], day: datetime.date, file: File, number: int
) -> tuple[tuple[int, float, str] | None, list[str]]:
    """Return (line number, time, name) and the first line of the text. A nameless line of LINE itself has None."""
    hour = hour_of(int(match[2]), _HALVES.get(match["before"] or "", (match["after"] or "").lower()))
    minute = int(match[3])
    if hour is None or minute > 59:
        raise LoraFtError(f"{file}:{number} has no time that can be read ({match[0][:20]!r})", "export the chat again")
    name, tab, text = match["rest"].partition("\t")
    if not tab or not clean_name(name):
        return None, []
    time = calendar.timegm((day.year, day.month, day.day, hour, minute, 0))
    return (number, float(time), clean_name(name)), [text]


def _message(entry: tuple[int, float, str] | None, lines: list[str]) -> Message | None:
    """Return a message, or None if there is none. LINE puts a text of several lines in quotes."""
    if entry is None:
        return None
    text = clean_text("\n".join(lines))
    if "\n" in text and text.startswith('"') and text.endswith('"'):
        text = clean_text(text[1:-1].replace('""', '"'))
    if not text or _OWN.fullmatch(text):
        return None
    return Message(f"{entry[0]}", entry[1], entry[2], text)


def _heading(line: str, order: str) -> datetime.date | None:
    match = _YEAR_FIRST.fullmatch(line.strip())
    if match is not None:
        return day_of((match[1], match[2], match[3]), "ymd")
    match = _YEAR_LAST.fullmatch(line.strip())
    return None if match is None else day_of((match[2], match[3], match[4]), order)


def _order(file: File) -> str:
    """Return the order of dates that end in the year: the only one in which all dates match their weekdays.

    Raises:
        UsageError: No order fits, or both do.
    """
    fits = {"dmy": True, "mdy": True}
    differs = False
    for _, line in text_lines(file):
        match = _YEAR_LAST.fullmatch(line.strip())
        if match is None or match[1][:3].lower() not in _WEEKDAYS:
            continue
        differs = differs or match[2] != match[3]
        for order in fits:
            day = day_of((match[2], match[3], match[4]), order)
            fits[order] = fits[order] and day is not None and day.weekday() == _WEEKDAYS.index(match[1][:3].lower())
    possible = [order for order, fit in fits.items() if fit]
    if not possible or (differs and len(possible) > 1):
        raise UsageError(
            f"{file} has dates with an ambiguous order of day and month", "set LINE to Japanese and export again"
        )
    return possible[0]

"""WhatsApp's text exports: Android and iOS, every order of dates, both clocks, and WhatsApp's own lines."""

from __future__ import annotations

import datetime
import zipfile
from pathlib import Path

import pytest
from babel import Locale
from babel.dates import format_date, format_skeleton, format_time
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.chats.clock import LOCALES
from lora_ft.data.chats.whatsapp import doubts_of_whatsapp, read_whatsapp

NARROW, MARK = "\u202f", "\u200e"


def export(path: Path, *lines: str, ends: str = "\n") -> Path:
    path.write_bytes((ends.join(lines) + ends).encode("utf-8"))
    return path


def texts_of(path: Path) -> list[tuple[str, str]]:
    return [(message.sender, message.text) for _, message in read_whatsapp(path)]


def times(path: Path) -> list[str]:
    return [
        f"{datetime.datetime.fromtimestamp(message.time, datetime.UTC):%Y-%m-%d %H:%M:%S}"
        for _, message in read_whatsapp(path)
    ]


@pytest.mark.parametrize(
    ("head", "time"),
    [
        ("12/31/23, 10:15 PM - ", "2023-12-31 22:15:00"),
        (f"12/31/23, 10:15{NARROW}PM - ", "2023-12-31 22:15:00"),
        ("12/31/2023, 12:15 AM - ", "2023-12-31 00:15:00"),
        ("31/12/2023, 22:15 - ", "2023-12-31 22:15:00"),
        ("31/12/2023, 12:15 pm - ", "2023-12-31 12:15:00"),
        ("31.12.23, 22:15 - ", "2023-12-31 22:15:00"),
        ("31/12/2023 à 22:15 - ", "2023-12-31 22:15:00"),
        ("31-12-23 22:15 - ", "2023-12-31 22:15:00"),
        ("2023-12-31, 22:15 - ", "2023-12-31 22:15:00"),
        ("2023. 12. 31. 22:15 - ", "2023-12-31 22:15:00"),
        ("2023. 12. 31. 오후 10:15 - ", "2023-12-31 22:15:00"),
        ("31/12/23 10:15 p. m. - ", "2023-12-31 22:15:00"),
        ("[12/31/23, 10:15:30 PM] ", "2023-12-31 22:15:30"),
        (f"[12/31/23, 10:15:30{NARROW}PM] ", "2023-12-31 22:15:30"),
        (f"{MARK}[31.12.23, 22:15:30] ", "2023-12-31 22:15:30"),
        ("[31/12/2023, 22:15:30] ", "2023-12-31 22:15:30"),
        ("[31.12.2023 klo 22.15.30] ", "2023-12-31 22:15:30"),
        ("[2023/12/31 下午10:15:30] ", "2023-12-31 22:15:30"),
    ],
)
def test_every_form_of_a_head(tmp_path: Path, head: str, time: str) -> None:
    file = export(tmp_path / "chat.txt", f"{head}Ana: hello: you")
    assert texts_of(file) == [("Ana", "hello: you")] and times(file) == [time]


def test_the_order_of_dates_is_that_in_which_all_are_possible(tmp_path: Path) -> None:
    file = export(tmp_path / "a.txt", "05/06/24, 10:00 - Ana: x", "13/06/24, 10:00 - Ana: y")
    assert times(file) == ["2024-06-05 10:00:00", "2024-06-13 10:00:00"]
    file = export(tmp_path / "b.txt", "05/06/24, 10:00 - Ana: x", "05/13/24, 10:00 - Ana: y")
    assert times(file) == ["2024-05-06 10:00:00", "2024-05-13 10:00:00"]


def test_the_order_of_dates_is_that_in_which_they_run_forward(tmp_path: Path) -> None:
    lines = [f"{date}, 10:00 - Ana: x" for date in ("11/01/24", "12/01/24", "01/02/24")]
    assert times(export(tmp_path / "chat.txt", *lines))[-1] == "2024-02-01 10:00:00"


def test_dates_of_which_nothing_tells_the_order_are_those_of_a_dense_chat(tmp_path: Path) -> None:
    lines = [f"{date}/24, 10:00 - Ana: x" for date in ("06/05", "06/06", "06/07")]
    assert times(export(tmp_path / "chat.txt", *lines))[0] == "2024-06-05 10:00:00"


def test_single_date_is_american_with_an_american_clock(tmp_path: Path) -> None:
    assert times(export(tmp_path / "a.txt", "05/06/24, 1:00 PM - Ana: x")) == ["2024-05-06 13:00:00"]
    assert times(export(tmp_path / "b.txt", "05/06/24, 1:00 pm - Ana: x")) == ["2024-06-05 13:00:00"]


def test_lines_without_a_head_continue_the_message(tmp_path: Path) -> None:
    lines = [
        "31.12.23, 22:15 - Ana: one",
        "",
        "two: with a colon",
        "99.99.23, 22:15 - no date",
        "31.12.23, 22:16 - Ben: x",
    ]
    expected = [("Ana", "one\n\ntwo: with a colon\n99.99.23, 22:15 - no date"), ("Ben", "x")]
    for ends in ("\n", "\r\n"):
        assert texts_of(export(tmp_path / "chat.txt", *lines, ends=ends)) == expected


def test_notices_are_left_out_on_android(tmp_path: Path) -> None:
    head = "31.12.23, 22:15 - "
    lines = [
        "Messages and calls are end-to-end encrypted. Tap to learn more.",
        "Ana created group “Garden: plot 14”",
        "Ana added Ben",
        "Ana: <Media omitted>",
        "Ana: <Medien ausgeschlossen>",
        "Ana: This message was deleted",
        "Ana: null",
        "Ana: IMG-20231231-WA0001.jpg (file attached)",
        "Ana: ",
        "Ana:",
    ]
    assert texts_of(export(tmp_path / "chat.txt", *(head + line for line in lines), f"{head}Ben: hello")) == [
        ("Ben", "hello")
    ]


def test_notices_are_left_out_on_ios(tmp_path: Path) -> None:
    head = "[31.12.23, 22:15:30] "
    lines = [
        f"{head}Garden: {MARK}Messages and calls are end-to-end encrypted.",
        f"{head}Ana: {MARK}image omitted",
        f"{MARK}{head}Ana: {MARK}<attached: 00000012-PHOTO.jpg>",
        f"{head}Ana: {MARK}You deleted this message.",
        f"{head}~{NARROW}Ben: look {MARK}<This message was edited>",
    ]
    assert texts_of(export(tmp_path / "chat.txt", *lines)) == [("Ben", "look")]


def test_captions_and_edited_texts_stay(tmp_path: Path) -> None:
    head = "31.12.23, 22:15 - "
    lines = [
        f"{head}Ana: VID-20231231-WA0001.mp4 (Datei angehängt)",
        "the goat",
        f"{head}Ben: two goats <This message was edited>",
        f"{head}Ben: see notes.txt (it is short)",
        f"{head}Ben: <3",
    ]
    assert texts_of(export(tmp_path / "chat.txt", *lines)) == [
        ("Ana", "the goat"),
        ("Ben", "two goats"),
        ("Ben", "see notes.txt (it is short)"),
        ("Ben", "<3"),
    ]


def test_direction_marks_and_byte_order_mark_are_removed(tmp_path: Path) -> None:
    file = export(tmp_path / "chat.txt", "\ufeff31.12.23, 22:15 - \u202aAna\u202c: hi @\u2068Ben\u2069")
    assert texts_of(file) == [("Ana", "hi @Ben")]


def test_id_of_a_message_is_its_line_number(tmp_path: Path) -> None:
    file = export(tmp_path / "Garden.txt", "31.12.23, 22:15 - Ana: one", "two", "31.12.23, 22:16 - Ben: x")
    assert [(chat, message.id) for chat, message in read_whatsapp(file)] == [("Garden", "1"), ("Garden", "3")]


def test_the_zip_file_of_ios_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "Garden.zip", "w") as archive:
        archive.writestr("_chat.txt", "[31.12.23, 22:15:30] Ana: hello\r\n")
        archive.writestr("00000012-PHOTO.jpg", b"\xff")
    assert [(chat, message.text) for chat, message in read_whatsapp(tmp_path / "Garden.zip")] == [("Garden", "hello")]
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("photo.jpg", b"\xff")
    with pytest.raises(UsageError, match=r"none\.zip has 0 text files"):
        list(read_whatsapp(tmp_path / "none.zip"))


@pytest.mark.parametrize(
    ("line", "number", "part"),
    [
        ("32/13/2023, 09:01 - Ben: x", 2, "its date or time is unknown"),
        ("20/11/2023, 25:01 - Ben: x", 2, "its date or time is unknown"),
        ("[25/11/2023, 09:02:00] Ben: x", 2, "unlike those before it"),
    ],
)
def test_unreadable_head_is_refused(tmp_path: Path, line: str, number: int, part: str) -> None:
    file = export(tmp_path / "chat.txt", "20/11/2023, 09:00 - Ana: one", line, "26/11/2023, 09:03 - Ana: two")
    with pytest.raises(
        UsageError, match=f"chat.txt:{number} begins like a message, but {part} .got '.+'.; put a blank"
    ):
        texts_of(file)
    file = export(tmp_path / "chat.txt", "20/11/2023, 09:00 - Ana: one", f" {line}")
    assert texts_of(file) == [("Ana", f"one\n {line}")]


@pytest.mark.parametrize(
    "first", ["Nov 20, 2023, 9:05 PM - Ana: x", "[15/05, 00:29] Ana: x", "20/11/23, 9:05 XX - Ana: x"]
)
def test_unknown_first_head_is_shown(tmp_path: Path, first: str) -> None:
    with pytest.raises(UsageError, match=r"chat\.txt:1 begins like a message, but its date .*is unknown"):
        texts_of(export(tmp_path / "chat.txt", first, "20/11/2023, 09:03 - Ana: two"))


def test_a_clock_of_12_hours_without_words_is_refused(tmp_path: Path) -> None:
    lines = [f"[20/11/23, {at % 12 or 12:02}:05:00] Ana: x" for at in range(8, 23)] * 2
    with pytest.raises(UsageError, match=r"chat\.txt has times on a 12-hour clock without AM and PM"):
        texts_of(export(tmp_path / "chat.txt", *lines))


def test_short_chat_without_am_and_pm_is_a_doubt(tmp_path: Path) -> None:
    hours = ("9:05", "1:10", "8:20")
    chat = export(tmp_path / "chat.txt", *(f"[3/11/23, {hour}:00] Ana: texto {hour}" for hour in hours))
    assert len(texts_of(chat)) == 3
    assert any("half of the day is unknown" in doubt for doubt in doubts_of_whatsapp(chat))
    clear = export(tmp_path / "clear.txt", *(f"[3/11/23, {hour}:00] Ana: texto" for hour in ("9:05", "13:10")))
    assert not any("half of the day" in doubt for doubt in doubts_of_whatsapp(clear))


def test_appointments_stay_in_their_message(tmp_path: Path) -> None:
    plan = ["25.12.2023 18:00: dinner", "20.11.23, 19:00 Uhr - Training", "27.11.23, 19:00 Uhr - Spiel: 2 x 45"]
    file = export(tmp_path / "chat.txt", "20.11.23, 09:00 - Ana: plan", *plan, "20.11.23, 09:05 - Ben: ok")
    assert texts_of(file) == [("Ana", "\n".join(["plan", *plan])), ("Ben", "ok")]


def test_pasted_messages_of_the_same_form_stay_in_their_message(tmp_path: Path) -> None:
    lines = [
        "[20.11.23, 09:00:00] Ana: see:",
        "[18.11.23, 22:15:00] Carl: I sold it",
        "[18.11.23, 22:16:00] Dora: no!",
        "[20.11.23, 09:01:00] Ben: well",
    ]
    assert texts_of(export(tmp_path / "chat.txt", *lines)) == [
        ("Ana", "\n".join(["see:", *lines[1:3]])),
        ("Ben", "well"),
    ]


def test_a_long_blank_line_is_read_at_once(tmp_path: Path) -> None:
    blanks = 60_000 * " "
    file = export(tmp_path / "chat.txt", f"20.11.23, 09:00 - Ana: a{blanks}b", blanks, f"{60_000 * '1 '}<")
    assert [len(text) for _, text in texts_of(file)] == [60_002 + 2 + 120_001]


def test_a_message_of_over_a_million_characters_is_refused(tmp_path: Path) -> None:
    file = export(tmp_path / "chat.txt", "20.11.23, 09:00 - Ana: a", *(20 * [60_000 * "x"]))
    with pytest.raises(UsageError, match=r"chat\.txt:1 is a message of over a million characters"):
        texts_of(file)


def test_a_text_without_a_message_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"shopping\.txt has no WhatsApp message"):
        texts_of(export(tmp_path / "shopping.txt", "twine", "12/31: canes", "99/99/99, 10:00 - Ana: x"))


def test_line_that_is_not_utf_8_is_refused_by_number(tmp_path: Path) -> None:
    file = tmp_path / "chat.txt"
    file.write_bytes(b"31.12.23, 22:15 - Ana: one\n31.12.23, 22:16 - Ana: caf\xe9\n")
    with pytest.raises(LoraFtError, match=r"chat\.txt:2 is not UTF-8 \(byte 26 of the line\)"):
        texts_of(file)


words = st.text("abc xyz.!?é漢🙂", min_size=1, max_size=30).map(str.strip).filter(bool)
moments = st.datetimes(datetime.datetime(2015, 1, 1), datetime.datetime(2030, 12, 31)).map(
    lambda moment: moment.replace(second=0, microsecond=0)
)
people = st.sampled_from(["Ana", "Ben Oak", "+49 170 1"])
FORMS = {
    "us": lambda t: f"{t.month}/{t.day}/{t:%y}, {t.hour % 12 or 12}:{t:%M}{NARROW}{'AM' if t.hour < 12 else 'PM'} - ",
    "uk": lambda t: f"{t:%d/%m/%Y, %H:%M} - ",
    "de": lambda t: f"{t:%d.%m.%y, %H:%M} - ",
    "iso": lambda t: f"{t:%Y-%m-%d, %H:%M} - ",
    "ios-de": lambda t: f"[{t:%d.%m.%y, %H:%M:%S}] ",
    "ios-us": lambda t: f"[{t.month}/{t.day}/{t:%y}, {t.hour % 12 or 12}:{t:%M:%S} {'AM' if t.hour < 12 else 'PM'}] ",
}


@given(
    st.lists(st.tuples(moments, people, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=12),
    st.sampled_from(sorted(FORMS)),
)
def test_written_messages_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, spoken: list[tuple[datetime.datetime, str, list[str]]], form: str
) -> None:
    # A day that is no month tells the order for sure; without one the dates may mean something else.
    spoken = sorted([*spoken, (datetime.datetime(2031, 1, 25), "Ana", ["end"])])
    lines = [FORMS[form](moment) + f"{name}: " + "\n".join(text) for moment, name, text in spoken]
    file = export(tmp_path_factory.mktemp("whatsapp") / "chat.txt", *lines)
    messages_read = [(message.time, message.sender, message.text) for _, message in read_whatsapp(file)]
    assert messages_read == [
        (t.replace(tzinfo=datetime.UTC).timestamp(), name, "\n".join(text)) for t, name, text in spoken
    ]


MOMENTS = st.lists(
    st.tuples(st.integers(1, 2000), st.integers(0, 59)), min_size=1, max_size=8
)  # minutes since the one before, and seconds


# The Spanish of Argentina has a 12-hour clock with seconds that tells no morning from evening.
@pytest.mark.parametrize("name", LOCALES)
@settings(max_examples=10)
@given(
    gaps=MOMENTS,
    clock=st.sampled_from(["hm", "Hm", "Bhm", "short"]),
    ios=st.booleans(),
    native=st.booleans(),
    width=st.sampled_from(["short", "yMd"]),
)
def test_exports_of_every_language_are_read_to_the_minute(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    clock: str,
    gaps: list[tuple[int, int]],
    ios: bool,
    native: bool,
    width: str,
) -> None:
    assume(not (name == "es_AR" and clock == "hm" and ios))
    locale = Locale.parse(name)
    moment, moments = datetime.datetime(2023, 11, 14, 8), [datetime.datetime(2023, 11, 13, 7)]
    for minutes, seconds in gaps:
        moment += datetime.timedelta(minutes=minutes)
        moments.append(moment.replace(second=seconds if ios else 0))
    moments = sorted(moments)
    heads = [head_of(moment, locale, clock, width, ios=ios, native=native) for moment in moments]
    spoken = [("Ana", "x"), ("Ben Oak", "y: z\nw"), ("+49 170 1", "ok")]
    lines = [f"{head}{': '.join(spoken[at % 3])}" for at, head in enumerate(heads)]
    file = export(tmp_path_factory.mktemp("locale") / "chat.txt", *lines)
    messages_read = [(message.time, message.sender, message.text) for _, message in read_whatsapp(file)]
    expected = [moment.replace(tzinfo=datetime.UTC).timestamp() for moment in moments]
    assert messages_read == [(time, *spoken[at % 3]) for at, time in enumerate(expected)]


def head_of(moment: datetime.datetime, locale: Locale, clock: str, width: str, *, ios: bool, native: bool) -> str:
    """Write a head as a phone does: the short date and the time of its language, Android without seconds."""
    date = format_date(moment, "short", locale) if width == "short" else format_skeleton("yMd", moment, locale=locale)
    if clock == "short":
        time = format_time(moment, "medium" if ios else "short", locale=locale)
    else:
        time = format_skeleton(clock + "s" * ios, moment, locale=locale)
    both = str(locale.datetime_formats["medium" if ios else "short"]).replace("{1}", date).replace("{0}", time)
    zero = {"arab": 0x660, "arabext": 0x6F0, "beng": 0x9E6, "deva": 0x966, "mymr": 0x1040}.get(
        locale.default_numbering_system
    )
    if native and zero:
        both = both.translate({ord(str(digit)): chr(zero + digit) for digit in range(10)})
    return f"[{both}] " if ios else f"{both} - "


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("bytes") / "chat.txt"
    file.write_bytes(b"31.12.23, 22:15 - Ana: x\n" + content)
    try:
        assert all(message.text and message.sender for _, message in read_whatsapp(file))
    except LoraFtError as error:
        assert str(file) in str(error)

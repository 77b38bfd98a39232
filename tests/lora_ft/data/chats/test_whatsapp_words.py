"""WhatsApp's own words are removed in many languages, and texts of people about them are kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.chats.whatsapp_words import MARK, written


@pytest.mark.parametrize(
    "text",
    [
        "This message was deleted",
        "This message was deleted by admin Ana",
        "Diese Nachricht wurde gelöscht.",
        "Mensagem apagada",
        "הודעה זו נמחקה",
        "このメッセージは削除されました",
        "यह मैसेज डिलीट कर दिया गया है।",
        "<Media omitted>",
        "<Médias omis>",
        "<Без медиафайлов>",
        "null",
        "Llamada perdida",
        "未接语音通话",
        "IMG-20231231-WA0001.jpg (archivo adjunto)",
        "notes.pdf (Datei angehängt)",
        f"{MARK}notes.pdf (kaikki muu)",
        "location: https://maps.google.com/?q=52.5,13.4",
        "Standort: https://maps.google.com/?q=52.5,13.4",
        "ubicación: https://maps.google.com/?q=52.5,13.4",
        "POLL:\nWhere?\nOPTION: here (2 votes)",
        "ENCUESTA:\n¿Dónde?\nOPCIÓN: aquí (2 votos)",
    ],
)
def test_words_of_whatsapp_are_removed_on_android(text: str) -> None:
    assert written(text, ios=False).strip() == ""


@pytest.mark.parametrize(
    "text",
    [
        f"{MARK}image omitted",
        f"{MARK}Bild weggelassen",
        f"{MARK}<attached: 00000012-PHOTO.jpg>",
        f"{MARK}something in a language that nobody listed",
        f"notes.pdf • {MARK}3 pages {MARK}document omitted",
        f"notes.pdf • {MARK}3 pages {MARK}<attached: 00000012-notes.pdf>",
        f"notes.pdf • {MARK}3 pages",
        f"{MARK}POLL:\nWhere?\n{MARK}OPTION: here ({MARK}2 votes)",
    ],
)
def test_words_of_whatsapp_are_removed_on_ios(text: str) -> None:
    assert written(text, ios=True).strip() == ""


@pytest.mark.parametrize(
    ("text", "remaining"),
    [
        ("look <This message was edited>", "look"),
        (f"look {MARK}<This message was edited>", "look"),
        ("hola <Se editó este mensaje.>", "hola"),
        ("こんにちは <このメッセージは編集されました>", "こんにちは"),
        (f"the goat {MARK}image omitted", "the goat"),
        (f"the goat {MARK}<attached: 0001-PHOTO.jpg>", "the goat"),
        ("VID-20231231-WA0001.mp4 (Datei angehängt)\nthe goat", "the goat"),
        (f"{MARK}<attached: 0001-PHOTO.jpg>\nthe goat", "the goat"),
        ("<Media omitted>\nthe goat", "the goat"),
        ("<Médias omis>\nla chèvre", "la chèvre"),
        ("<省略多媒体文件>\n山羊", "山羊"),
        (f"the\ngoat\n{MARK}image omitted", "the\ngoat"),
    ],
)
def test_text_next_to_words_of_whatsapp_is_kept(text: str, remaining: str) -> None:
    assert written(text, ios=True).strip() == remaining


@pytest.mark.parametrize("ios", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        f"call me at {MARK}+49 170 1 or come",
        f"{MARK}+49 170 1 is her number",
        f"hello {MARK}world, it is late",
        "I think this message was deleted by mistake?",
        "This message was deleted and then some",
        "see notes.txt (it is short)",
        "x <3",
        "a <edited> b",
        "<html>\n<p>",
        '<p class="a">\nx',
        "<3",
        "two • three",
        "option: https://example.org/maps",
        "poll: who comes?",
        "meet me here: https://maps.google.com/?q=52.5,13.4",
    ],
)
def test_text_about_such_words_is_kept(text: str, ios: bool) -> None:
    assert written(text, ios=ios) == text


@given(st.text(st.sampled_from(f"<>{MARK} a.\n•(:"), max_size=40), st.booleans())
def test_any_text_is_accepted(text: str, ios: bool) -> None:
    assert len(written(text, ios=ios)) <= len(text)


@pytest.mark.parametrize("text", [" ", f"{MARK} ", "<", ">", " <", "(", "a.a (", "• ", f"a • {MARK}", "\n", "x: "])
def test_long_texts_take_linear_time(text: str) -> None:
    for ending in ("", ">", ")", "x"):
        written(300_000 // len(text) * text + ending, ios=True)  # a quadratic pattern would not come back

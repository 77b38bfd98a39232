"""Telegram Desktop's HTML export: pages in order, joined messages, forwards, replies, topics, accounts, damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ft.core.errors import LoraFtError
from lora_ft.data.chats.message import Message
from lora_ft.data.chats.telegram_folder import read_telegram_export
from lora_ft.data.chats.telegram_html import read_telegram_html

TITLE = "20.11.2023 09:00:00 UTC+01:00"
TIME = 1700467200.0


def message(number: int, text: str, sender: str | None = "Ana", *, inside: str = "", title: str = TITLE) -> str:
    name = "" if sender is None else f'<div class="from_name">\n{sender} \n</div>'
    joined = " joined" if sender is None else ""
    words = f'<div class="text">\n{text}\n</div>' if text else ""
    return f"""<div class="message default clearfix{joined}" id="message{number}">
<div class="pull_left userpic_wrap"><div class="userpic"><div class="initials">A</div></div></div>
<div class="body"><div class="pull_right date details" title="{title}">09:00</div>{name}{inside}{words}</div></div>"""


def service(number: int, text: str) -> str:
    return f'<div class="message service" id="message{number}"><div class="body details">\n{text}\n</div></div>'


def page(path: Path, *messages: str, name: str = "Garden &amp; Co") -> Path:
    header = f'<div class="page_header"><div class="content"><div class="text bold">\n{name} \n</div></div></div>'
    path.parent.mkdir(parents=True, exist_ok=True)
    body = f'<div class="page_wrap">{header}<div class="page_body chat_page"><div class="history">{"".join(messages)}'
    start = '<!DOCTYPE html><html><head><meta charset="utf-8"/><title>Exported Data</title></head><body>'
    path.write_text(f"{start}{body}</div></div></div></body></html>", encoding="utf-8")
    return path


def test_a_message_with_everything(tmp_path: Path) -> None:
    answer = '<div class="reply_to details">In reply to <a href="#go_to_message1">this message</a></div>'
    elsewhere = '<div class="reply_to details">In reply to a message in another chat</div>'
    photo = '<div class="media_wrap clearfix"><div class="body"><div class="title bold">Photo</div></div></div>'
    file = page(
        tmp_path / "messages.html",
        service(-1, "20 November 2023"),
        message(1, 'one &lt;b&gt;<br>two <strong>bold <a href="x">link</a></strong> end'),
        message(2, "joined", None, inside=answer),
        message(3, "caption", "Ben: O", inside=elsewhere + photo),
        message(4, "", "Ben", inside=photo),
    )
    assert list(read_telegram_html(file)) == [
        ("Garden & Co", Message("1", TIME, "Ana", "one <b>\ntwo bold link end")),
        ("Garden & Co", Message("2", TIME, "Ana", "joined", "1")),
        ("Garden & Co", Message("3", TIME, "Ben O", "caption")),
    ]


def test_forwards_and_inline_bots_are_marked(tmp_path: Path) -> None:
    news = '<div class="from_name">City News <span class="date details" title="x"> 19.11.2023</span></div>'
    forward = f'<div class="pull_left forwarded userpic_wrap"></div><div class="forwarded body">{news}'
    again = '<div class="forwarded body"><div class="text">news again</div></div>'
    file = page(
        tmp_path / "messages.html",
        message(1, "", "Ben", inside=forward + '<div class="text">news</div></div>'),
        message(2, "", None, inside=again),
        message(3, "cat", "Ben via @gif"),
        message(4, "own", "Ben"),
    )
    messages = [(item.sender, item.text, item.forwarded, item.bot) for _, item in read_telegram_html(file)]
    assert messages == [
        ("Ben", "news", True, False),
        ("Ben", "news again", True, False),
        ("Ben", "cat", False, True),
        ("Ben", "own", False, False),
    ]


def test_topics_are_conversations(tmp_path: Path) -> None:
    def answer(number: int) -> str:
        return f'<div class="reply_to details">In reply to <a onclick="return go_to_message{number}">x</a></div>'

    file = page(
        tmp_path / "messages.html",
        service(10, "Ana created topic &laquo;Goats&raquo;"),
        message(11, "goat", inside=answer(10)),
        message(12, "general"),
        message(13, "yes, goat", inside=answer(11)),
    )
    messages = [(item.text, item.thread, item.reply_to) for _, item in read_telegram_html(file)]
    assert messages == [("goat", "Goats", None), ("general", "", None), ("yes, goat", "Goats", "11")]


@pytest.mark.parametrize("opened", ["", "messages.html", "messages2.html"])
def test_all_pages_of_a_chat_are_read_in_order(tmp_path: Path, opened: str) -> None:
    for number in (1, 2, 10):
        name = f"messages{number if number > 1 else ''}.html"
        page(tmp_path / "ChatExport" / name, message(number, f"text {number}"))
    (tmp_path / "ChatExport" / "css").mkdir()
    messages = list(read_telegram_export(tmp_path / "ChatExport" / opened))
    assert [(chat, item.text) for chat, item in messages] == [
        ("Garden & Co", f"text {number}") for number in (1, 2, 10)
    ]


def test_chats_of_an_account_are_distinguished(tmp_path: Path) -> None:
    for number in (1, 2):
        page(tmp_path / "chats" / f"chat_00{number}" / "messages.html", message(1, f"chat {number}"))
    page(tmp_path / "export_results.html", name="Exported Data")
    texts = [(chat, item.text) for chat, item in read_telegram_export(tmp_path)]
    assert texts == [("Garden & Co", "chat 1"), ("Garden & Co #2", "chat 2")]


def test_a_folder_with_both_forms_is_read_once(tmp_path: Path) -> None:
    page(tmp_path / "messages.html", message(1, "html"))
    (tmp_path / "result.json").write_text('{"name": "x", "type": "y", "id": 1, "messages": []}')
    assert list(read_telegram_export(tmp_path)) == []


@pytest.mark.parametrize(
    ("title", "time"),
    [("20.11.2023 09:00:00", 1700470800.0), ("20.11.2023 09:00:00 UTC-05:30", 1700470800.0 + 5.5 * 3600)],
)
def test_dates_may_have_offsets(tmp_path: Path, title: str, time: float) -> None:
    ((_, item),) = read_telegram_html(page(tmp_path / "messages.html", message(1, "x", title=title)))
    assert item.time == time


@pytest.mark.parametrize("title", ["", "soon", "32.11.2023 09:00:00", "20.11.2023 09:00:00 UTC+99:00"])
def test_message_without_a_date_is_refused_by_its_id(tmp_path: Path, title: str) -> None:
    with pytest.raises(LoraFtError, match=r"messages\.html, message 7, has no date that can be read"):
        list(read_telegram_html(page(tmp_path / "messages.html", message(7, "x", title=title))))


def test_joined_message_without_a_sender_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoraFtError, match=r"messages\.html, message 7, has no sender"):
        list(read_telegram_html(page(tmp_path / "messages.html", message(7, "x", None))))


def test_damaged_page_has_whole_messages_or_is_refused(tmp_path: Path) -> None:
    whole = page(tmp_path / "messages.html", *(message(number, f"text {number}") for number in range(5))).read_bytes()
    expected = [f"text {number}" for number in range(5)]
    for end in range(0, len(whole), 37):
        (tmp_path / "messages.html").write_bytes(whole[:end])
        try:
            texts = [item.text for _, item in read_telegram_html(tmp_path / "messages.html")]
        except LoraFtError:
            continue
        assert texts[:-1] == expected[: max(0, len(texts) - 1)]

"""Reader of Telegram Desktop's HTML export of a chat or an account: messages.html, messages2.html, ….

A message without a name (class `joined`) has the sender of the message before it. Dates are in `title` attributes,
with the UTC offset of the exporting machine.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lxml.etree
import lxml.html

from lora_ft.core.errors import LoraFtError
from lora_ft.data.chats.message import Message, clean_name, clean_text
from lora_ft.data.chats.places import File, files_below, opened, root_of
from lora_ft.data.chats.telegram import Topics

PAGE = re.compile(r"messages\d*\.html")
_MAX_PAGE = 1 << 24  # bytes; Telegram begins a page after 1,000 messages
_DATE = re.compile(r"(\d{2})\.(\d{2})\.(\d{4}) (\d{2}):(\d{2}):(\d{2})(?: UTC([+-])(\d{2}):?(\d{2}))?")
_ANSWERED = re.compile(r"go_to_message(-?\d{1,18})")
_VIA = re.compile(r"(.*) via @\w{1,64}", re.DOTALL)
_TOPIC = re.compile(r".{0,200} created topic [«\"](.*)[»\"]", re.DOTALL)


def is_telegram_html(start: bytes) -> bool:
    """Return whether a file begins like a page of messages from Telegram Desktop."""
    return b'class="page_wrap' in start and b"<html" in start


def read_telegram_html(file: File) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) for every message with a text.

    Args:
        file: A page, which is read with all pages of its folder in order, or a folder with pages at any depth.

    Raises:
        LoraFtError: A page is damaged, or a message has no date or sender.
    """
    if file.is_dir():
        pages = files_below(file, PAGE)
    else:
        siblings = files_below(root_of(Path(str(file)).parent), PAGE) if PAGE.fullmatch(file.name) else []
        pages = [page for page in siblings if page.parent == file.parent] or [file]
    chats: dict[str, list[File]] = {}
    for page in pages:
        chats.setdefault(str(page.parent), []).append(page)
    names: set[str] = set()
    for folder, chat_pages in chats.items():
        trees = (_tree(page) for page in chat_pages)
        yield from _chat(Path(folder).name, zip(chat_pages, trees, strict=True), names)


def _tree(page: File) -> Any:
    with opened(page) as content:
        data = content.read(_MAX_PAGE + 1)
    if len(data) > _MAX_PAGE:
        raise LoraFtError(f"{page} is longer than {_MAX_PAGE:,} bytes", "export the chat again, as JSON")
    try:
        return lxml.html.document_fromstring(data, parser=lxml.html.HTMLParser(encoding="utf-8"))
    except (lxml.etree.LxmlError, ValueError) as error:
        raise LoraFtError(f"{page} is not HTML ({error})", "export the chat again") from error


def _chat(folder: str, pages: Iterable[tuple[File, Any]], names: set[str]) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) from the pages of one chat."""
    name, sender, bot, topics = "", "", False, Topics()
    for page, tree in pages:
        if not name:
            title = next(iter(_below(tree, "page_header")), None)
            titles = [] if title is None else _below(title, "text")
            name = clean_name(titles[0].text_content()) if titles else ""
            name = name or clean_name(folder)
            numbered = (name, *(f"{name} #{n}" for n in range(2, len(names) + 3)))
            name = next(candidate for candidate in numbered if candidate not in names)
            names.add(name)
        for element in _below(tree, "message"):
            kinds = _classes(element)
            number = (element.get("id") or "").removeprefix("message")
            body = _child(element, "body")
            if body is None:
                continue
            if "service" in kinds:
                match = _TOPIC.fullmatch(clean_text(body.text_content()))
                if match is not None:
                    topics.begin(number, match[1])
                continue
            if "default" not in kinds:
                continue
            where = f"{page}, message {number[:40]}"
            if (from_name := _child(body, "from_name")) is not None:
                sender, bot = _sender(from_name)
            elif "joined" not in kinds:
                sender, bot = "", False
            message = _message(body, where, number, (sender, bot), topics)
            if message is not None:
                yield name, message


def _message(body: Any, where: str, number: str, sender: tuple[str, bool], topics: Topics) -> Message | None:
    original = _child(body, "forwarded", "body")
    inner = body if original is None else original
    answered = _child(inner, "reply_to")
    link = "" if answered is None else _link(answered)
    thread = topics.find(number, link)
    words = _child(inner, "text")
    text = "" if words is None else clean_text(_flat(words))
    if not text:
        return None
    if not sender[0]:
        raise LoraFtError(f"{where}, has no sender", "export the chat again")
    date = _child(body, "date")
    return Message(
        id=number,
        time=_time("" if date is None else date.get("title") or "", where),
        sender=sender[0],
        text=text,
        reply_to=link if link and not topics.is_root(link) else None,
        thread=thread,
        forwarded=original is not None,
        bot=sender[1],
    )


def _sender(element: Any) -> tuple[str, bool]:
    """Return the sender's name, and True if a bot sent the message on the sender's behalf."""
    name = clean_text(element.text or "")
    via = _VIA.fullmatch(name)
    return clean_name(via[1] if via else name), via is not None


def _time(title: str, where: str) -> float:
    match = _DATE.search(title)
    try:
        if match is None:
            raise ValueError(title)
        day, month, year, hour, minute, second = map(int, match.groups()[:6])
        minutes = (int(match[8]) * 60 + int(match[9])) * (-1 if match[7] == "-" else 1) if match[7] else 0
        zone = datetime.timezone(datetime.timedelta(minutes=minutes))
        return datetime.datetime(year, month, day, hour, minute, second, tzinfo=zone).timestamp()
    except (ValueError, OverflowError) as error:
        raise LoraFtError(f"{where}, has no date that can be read ({title[:40]!r})", "export the chat again") from error


def _link(answered: Any) -> str:
    """Return the id of the answered message, or "" if it is in another chat."""
    attributes: Iterable[Mapping[str, str]] = (link.attrib for link in answered.iter("a"))
    matches = (
        _ANSWERED.search(value) for each in attributes for value in (each.get("href", ""), each.get("onclick", ""))
    )
    return next((match[1] for match in matches if match is not None), "")


def _flat(element: Any) -> str:
    """Return the text of an element, with a newline for each line break."""
    parts = [element.text or ""]
    for child in element:
        parts.append("\n" if child.tag == "br" else _flat(child) if isinstance(child.tag, str) else "")
        parts.append(child.tail or "")
    return "".join(parts)


def _classes(element: Any) -> set[str]:
    return set((element.get("class") or "").split())


def _below(tree: Any, name: str) -> list[Any]:
    return [element for element in tree.iter("div") if name in _classes(element)]


def _child(element: Any, *names: str) -> Any:
    """Return the first child div with these classes, or None. Skip forwards unless "forwarded" is among them."""
    for child in element:
        classes = _classes(child) if child.tag == "div" else set()
        if classes.issuperset(names) and ("forwarded" in names or "forwarded" not in classes):
            return child
    return None

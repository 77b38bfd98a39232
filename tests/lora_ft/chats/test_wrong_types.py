"""Exports with values of wrong types anywhere: they are read or refused in our words, whatever is wrong."""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import LoraFtError
from lora_ft.chats.formats import Choice, read_chats

TELEGRAM = {
    "name": "Garden",
    "type": "private_supergroup",
    "id": 7,
    "messages": [
        {"id": 1, "type": "service", "date_unixtime": "17", "action": "topic_created", "title": "Goats", "text": ""},
        {"id": 2, "type": "message", "date": "2023-11-20T09:20:00", "date_unixtime": "1700472000", "from": "Ana",
         "from_id": "user2", "text": ["hi ", {"type": "bold", "text": "you"}], "text_entities": [{"text": "hi"}],
         "reply_to_message_id": 1, "forwarded_from": "News", "via_bot": "@gif"},
        {"id": 3, "type": "message", "date": "2023-11-20T09:20:00", "from": "Ben", "text": "yes"},
    ],
}  # fmt: skip
ACCOUNT = {"about": "", "chats": {"about": "", "list": [TELEGRAM]}, "left_chats": {"list": [TELEGRAM]}}
EXAMPLES: dict[str, Any] = {"telegram": TELEGRAM, "telegram account": ACCOUNT}
WRONG = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1.5,
        2**62,
        1e300,
        "",
        "x",
        "1",
        "nan",
        "\ud83d",
        "\x1b[31m",
        [],
        [1],
        [[]],
        {},
        {"text": []},
        ["x", None],
    ]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value inside."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from places(child, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy with another value at a path."""
    if not path:
        return new
    whole = copy.deepcopy(value)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return whole


def write(folder: Path, example: str, content: Any) -> Path:
    file = folder / "result.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


@pytest.mark.parametrize("example", EXAMPLES)
@given(data=st.data())
def test_no_fault_but_ours(example: str, data: st.DataObject) -> None:
    content = EXAMPLES[example]
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(content))))
        content = changed(content, path, data.draw(WRONG))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(LoraFtError):
        file = write(Path(folder), example, content)
        chats = read_chats(file, example.split()[0], choice=Choice(forwarded=True, bots=True))
        for chat, messages in chats.items():
            assert all(type(one.text) is str and one.text and one.sender and one.id is not None for one in messages), (
                chat
            )

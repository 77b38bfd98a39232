"""Ways to damage a valid input: as bytes, as text and as a JSON value. All draw from one `random.Random`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

_DEEP: Any = 0
for _ in range(300):
    _DEEP = [_DEEP]

ODD_VALUES: Sequence[Any] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    0.5,
    -0.0,
    1e308,
    1e23,
    float("nan"),
    float("inf"),
    2**31,
    2**63,
    2**64,
    -(2**63),
    10**400,
    "",
    " ",
    "\n",
    "\t",
    "0",
    "1e9",
    "nan",
    "null",
    "yes",
    "\x00",
    "\x1b[2J",
    "\u202e",
    "\ud800",
    "🙂",
    "é" * 70,
    "x" * 100_000,
    "../..",
    "/",
    "~",
    "~nosuchuser/x",
    "/dev/null",
    "/dev/zero",
    "a/b/../../c",
    "C:\\x",
    "{",
    "{}",
    "{text",
    "{a.b[0].c}",
    "$(id)",
    "%s",
    "<b>",
    "(a+)+$",
    "[",
    [],
    [None],
    [[]],
    ["x"] * 50,
    {},
    {"": None},
    {"a": 1},
    _DEEP,
)
_SNIPPETS = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n\n\n",
    b"\t",
    b'"',
    b"'",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b";",
    b"|",
    b"&a",
    b"*a",
    b"!!python/object:os.system",
    b"<<: ",
    b"---",
    b"...",
    b"#",
    b"-",
    b"1e999",
    b"9" * 5000,
    b"[" * 3000,
    b'{"a":' * 3000,
    b" " * 60_000,
    b"\xe2\x80\x8e",
    b"\xd9\xa1",
    b"NaN",
    b"null",
    b"\x1b[31m",
    b"2023-11-20",
    b"99:99",
    b"PK\x03\x04",
)


def damaged_bytes(random: Random, content: bytes) -> bytes:
    """Return `content` after one to five cuts, flips, copies and insertions."""
    for _ in range(random.randint(1, 5)):
        content = _damaged_once(random, content)
    return content


def _damaged_once(random: Random, content: bytes) -> bytes:
    at = random.randint(0, len(content))
    end = min(len(content), at + random.choice((1, 2, 8, 64, 4096)))
    edits: Sequence[Callable[[], bytes]] = (
        lambda: content[:at] + bytes([random.randrange(256)]) + content[at + 1 :],
        lambda: content[:at] + random.choice(_SNIPPETS) + content[at:],
        lambda: content[:at] + random.choice(_SNIPPETS) + content[end:],
        lambda: content[:at] + content[end:],
        lambda: content[:at] + content[at:end] * 2 + content[end:],
        lambda: content[:at],
        lambda: content[at:],
    )
    return random.choice(edits)()


def damaged_json(random: Random, value: Any) -> Any:
    """Return a copy of a JSON value in which one to three places hold something else, nothing, or one another."""
    root = [copy.deepcopy(value)]
    for _ in range(random.randint(1, 3)):
        places = list(_places(root))
        holder, key = random.choice(places)
        other_holder, other_key = random.choice(places)
        edit = random.randrange(5)
        if edit == 0 and isinstance(holder, dict):
            del holder[key]
        elif edit == 1 and isinstance(holder, dict):
            holder[random.choice(("", "extra", "__class__", "a.b", "é", str(key).upper()))] = odd_value(random)
        elif edit == 2:
            holder[key] = copy.deepcopy(other_holder[other_key])
        else:
            holder[key] = odd_value(random)
    return root[0]


def odd_value(random: Random) -> Any:
    """Return one of `ODD_VALUES`, which may be changed."""
    return copy.deepcopy(random.choice(ODD_VALUES))


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON, lone halves of characters as their escapes."""
    return json.dumps(value).encode()


def _places(holder: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) at and below `holder`."""
    places: list[tuple[Any, Any]] = []
    waiting = [holder]
    while waiting:
        holder = waiting.pop()
        keys = holder if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            places.append((holder, key))
            if isinstance(holder[key], dict | list) and len(places) < 2000:
                waiting.append(holder[key])
    return places

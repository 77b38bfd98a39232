"""Reader of a safe subset of YAML, for task files and --set.

YAML has surprises: dates, tags that build objects, merge keys, `no` for false and `010` for 8. With aliases, 1 KB can
expand to gigabytes. This reader processes the parser's events one by one, so that it checks each limit before it builds
a value. Plain scalars are read as in YAML 1.2, except that yes, no, on and off are booleans as in YAML 1.1. If a key
takes text, the error asks to quote them.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lora_ft.core.errors import UsageError

MAX_BYTES = 1 << 22  # size of a file; the largest shipped task has 3 KB
MAX_DEPTH = 20  # a task needs 4
_MAX_SIZE = 1 << 23  # characters, plus 16 for each value, with aliases expanded
_MAX_DIGITS = 18

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = ("", "~", "null", "Null", "NULL")
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")
_UNWRITABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")
_UNDIVIDED = re.compile(
    r"[ \t]*(?:- +)?([A-Za-z_][\w.-]*)[ \t]*(\uff1a|:(?=[^\s/\\]))"
)  # a key that YAML reads as text
_SPECIAL = re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))")

Place = tuple[str | int, ...]  # keys and indices from the root to a value


@dataclass(frozen=True)
class Mark:
    """The source of a value.

    Attributes:
        line: Line number, from 1.
        text: Text of a scalar, as written; "" for lists and mappings.
    """

    line: int
    text: str


@dataclass(frozen=True)
class Document:
    """A YAML document.

    Attributes:
        value: None, booleans, numbers, text, lists, and mappings with text keys.
        marks: Mark of every value except aliases, by its path.
    """

    value: Any
    marks: dict[Place, Mark] = field(default_factory=dict)


def read_yaml(file: Path) -> Document:
    """Read a YAML file.

    Raises:
        UsageError: The file is unreadable, too large, not UTF-8, or not YAML of this subset.
    """
    try:
        with open(file, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror})", "give a YAML file") from error
    if len(content) > MAX_BYTES:
        raise UsageError(
            f"{file} is too large for a task (at most {MAX_BYTES:,} bytes)", "give the task file, not its rows"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16, not UTF-8" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
        raise UsageError(f"{file} is {kind} (byte {error.start})", "save it as UTF-8") from error
    return parse_yaml(text, str(file))


def parse_yaml(text: str, where: str) -> Document:
    """Parse one YAML document.

    Args:
        text: Text of the document.
        where: Name of the source, for errors.

    Raises:
        UsageError: The text is not YAML of this subset. The error names the line.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where} is not UTF-8 (character {error.start})", "write it in UTF-8") from error
    loader = _LOADER(text)
    try:
        return _Reader(where).read(_events(loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        problem = " ".join(str(error.problem or error.context).split())
        lines = text.split("\n")
        if "\t" in (lines[line : line + 1] or [""])[0]:
            raise _refused(where, line + 1, "is not YAML: it contains a tab", "use spaces instead") from error
        if key := _undivided_key(lines, line):
            number, name, fault = key
            raise _refused(
                where, number, f"is not YAML: the colon of {name} {fault}", f"write `{name}: ` and the value"
            ) from error
        raise _refused(where, line + 1, f"is not YAML: {problem}", "correct it; quote text with : # { [ % @") from error
    except yaml.YAMLError as error:  # a control character, of which only the position is known
        line = text.count("\n", 0, getattr(error, "position", 0) or 0) + 1
        raise _refused(where, line, "is not YAML: it contains a control character", "remove it") from error
    finally:
        loader.dispose()


def _undivided_key(lines: Sequence[str], line: int) -> tuple[int, str, str] | None:
    """Return the line number, the name and the fault of a key whose colon YAML reads as text, or None.

    The parser stops only at the next line or at the next key.

    Args:
        lines: Lines of a document that is not YAML.
        line: Index of the line at which the parser stopped.
    """
    near = [index for index, content in enumerate(lines[: line + 1]) if content.strip()][-2:]
    for index in reversed(near):
        if key := _UNDIVIDED.match(lines[index]):
            return index + 1, key[1][:40], "has no blank after it" if key[2] == ":" else "is full-width"
    return None


def plain_text(text: str) -> bool:
    """Return whether this reader reads an unquoted scalar as text."""
    return isinstance(_scalar(text), str)


def quoted(text: str) -> str:
    """Return a text as a scalar in double quotes, also if it has characters that YAML refuses or folds.

    Raises:
        UsageError: The text is not Unicode, such as a file name in another encoding.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UsageError(f"{text!r} is not UTF-8", "rename it")
    return _UNWRITABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))


def _events(loader: Any) -> Iterator[Any]:
    while loader.check_event():
        yield loader.get_event()


def _refused(where: str, line: int, problem: str, remedy: str) -> UsageError:
    return UsageError(f"{where} {problem} (line {line})", remedy)


@dataclass
class _Open:
    """A list or mapping that has not ended yet."""

    value: Any
    path: Place
    anchor: str | None
    size_before: int  # size of the document when it began
    key: str | None = None
    keys: dict[str, int] = field(default_factory=dict)  # line of each key


class _Reader:
    """A builder of a value from events, with a stack instead of recursion."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._size = 0
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._marks: dict[Place, Mark] = {}
        self._root: Any = None

    def read(self, events: Iterator[Any]) -> Document:
        documents = 0
        for event in events:
            self._line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error("a second document begins", "keep one document per file")
            elif isinstance(event, yaml.NodeEvent):
                self._node(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                ended = self._open.pop()
                if ended.anchor:
                    self._anchors[ended.anchor] = ended.value, self._size - ended.size_before
        return Document(self._root, self._marks)

    def _node(self, event: Any) -> None:
        top = self._open[-1] if self._open else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            self._key(event, top)
            return
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._error(f"the alias *{event.anchor} has no complete anchor before it", "write the value out")
            value, size = self._anchors[event.anchor]
            self._grow(size)
            self._put(copy.deepcopy(value))
            return
        tag = event.tag
        if tag is not None and tag != "!":
            raise self._error(f"tags are not supported (got {tag[:40]})", "remove it, and quote text")
        path = self._path()
        if isinstance(event, yaml.ScalarEvent):
            size_before = self._size
            self._grow(16 + len(event.value))
            value = self._plain(event.value) if event.implicit[0] and tag is None else event.value
            self._marks[path] = Mark(self._line, event.value)
            self._put(value)
            if event.anchor:
                self._anchors[event.anchor] = value, self._size - size_before
            return
        if len(self._open) >= MAX_DEPTH:
            raise self._error(f"lists and mappings are nested more than {MAX_DEPTH} levels deep", "flatten them")
        size_before = self._size
        self._grow(16)
        value = [] if isinstance(event, yaml.SequenceStartEvent) else {}
        self._marks[path] = Mark(self._line, "")
        self._put(value)
        self._open.append(_Open(value, path, event.anchor, size_before))

    def _key(self, event: Any, top: _Open) -> None:
        if not isinstance(event, yaml.ScalarEvent) or event.tag not in (None, "!"):
            raise self._error("a key is not text", "write keys as words")
        key = event.value
        self._grow(16 + len(key))
        if key == "<<" and event.implicit[0]:
            raise self._error("merge keys (<<) are not supported", "write the keys out")
        if key in top.keys:
            raise self._error(f"the key {key[:40]!r} is repeated (first in line {top.keys[key]})", "remove one")
        top.keys[key], top.key = self._line, key

    def _path(self) -> Place:
        if not self._open:
            return ()
        top = self._open[-1]
        return (*top.path, len(top.value) if isinstance(top.value, list) else str(top.key))

    def _put(self, value: Any) -> None:
        if not self._open:
            self._root = value
            return
        top = self._open[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        else:
            top.value[top.key], top.key = value, None

    def _plain(self, text: str) -> Any:
        if _INTEGER.fullmatch(text) and len(text) > _MAX_DIGITS:
            raise self._error(f"a number has {len(text):,} digits", "quote it if it is text")
        return _scalar(text)

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > _MAX_SIZE:
            raise self._error("the values are too large for a task, with aliases expanded", "write them out")

    def _error(self, problem: str, remedy: str) -> UsageError:
        return _refused(self._where, self._line, f"is not supported: {problem}", remedy)


def _scalar(text: str) -> Any:
    """Return the value of an unquoted scalar."""
    if text in _NULL:
        return None
    lower = text.lower()
    if lower in _TRUTH and text in (lower, lower.capitalize(), lower.upper()):
        return _TRUTH[lower]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) <= _MAX_DIGITS else text
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(lower.replace(".", ""))
    return text

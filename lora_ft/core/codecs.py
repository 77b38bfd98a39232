"""Codecs: reversible encodings of text in characters that T5's vocabulary has and its tokenizer preserves.

T5's vocabulary lacks `{ } < ~ ^ \\` and the backquote. Its tokenizer turns newlines and tabs into spaces, merges
repeated spaces, and drops leading ones. A task's codec encodes prompts and targets in a form that survives this, and
decodes answers. Marks are single tokens that are rare in prose. `′` starts the form of any character without a mark:

    newline • (then a space that is not part of the text)      { «      } »
    tab ′>   carriage return ′.   3 spaces ′3 (each with such a space)
    < ′[     \\ ′/     ^ ′*     ` ′'     ~ ′-     the marks ′′ ′• ′« ′»     ▁ ′_
    emoji, arrows and control characters by their code point, ′#1f600;
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from lora_ft.core.errors import UsageError

ESCAPE, NEWLINE, OPEN, CLOSE = "′", "•", "«", "»"

_BREAKS = {"\n": NEWLINE, "\t": "′>", "\r": "′."}
_MARKS = {"{": OPEN, "}": CLOSE, "<": "′[", "\\": "′/", "^": "′*", "`": "′'", "~": "′-", "▁": "′_"}
_MARKS |= {mark: ESCAPE + mark for mark in (ESCAPE, NEWLINE, OPEN, CLOSE)}
_SPACES = re.compile(r"[ \n\t\r]+")
# Symbols outside T5's vocabulary and outside any script, and primes that Unicode's NFKC would turn into marks.
_BY_NUMBER = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f¡¢¤¥¦§©¬±¶·¿×÷″‴⁗\u200d\u2190-\u2bff\ufe0f\U00010000-\U0010ffff]"
)
_MARKED = re.compile(rf"((?:{NEWLINE}|′[>.1-9])+) ?|′#([0-9a-f]{{1,6}});|[{OPEN}{CLOSE}]|′[^#]", re.DOTALL)
_UNFINISHED = re.compile(r"(?<!′)(?:′′)*(′(?:#[0-9a-f]{0,6})?)$")
_MEANING = {form: text for text, form in _MARKS.items()} | {'′"': '"'}
_GAP = {form: text for text, form in _BREAKS.items()} | {f"′{n}": " " * n for n in range(1, 10)}
_GAPS = re.compile(f"{NEWLINE}|′.")


class Codec:
    """The codec `none`, which leaves every text unchanged.

    Attributes:
        name: Name of the codec in a task file.
        nests: True if targets may be objects and lists.
    """

    name = "none"
    nests = False

    def encode(self, text: str) -> str:
        """Return the encoded form of a target.

        Raises:
            UsageError: The codec does not support this kind of text.
        """
        return text

    def decode(self, text: str) -> str:
        """Return the text of an encoded form. Never raises, whatever text a model generated."""
        return text

    def encode_prompt(self, text: str) -> str:
        """Return the encoded form of a prompt, which may be any text."""
        return text

    def canonical(self, text: str) -> str:
        """Return a target encoded and decoded: the same text, or another spelling of the same value.

        Raises:
            UsageError: The codec does not support this kind of text.
        """
        return text

    def settled(self, text: str) -> str:
        """Return the prefix of an encoded form that can be decoded before the rest is known."""
        return text


class Text(Codec):
    """The codec `text`, which encodes any text: `decode(encode(text)) == text`."""

    name = "text"

    def encode(self, text: str) -> str:
        return self.encode_prompt(text)

    def encode_prompt(self, text: str) -> str:
        text = "".join(_MARKS.get(character, character) for character in text)
        text = _BY_NUMBER.sub(lambda match: f"′#{ord(match[0]):x};", text)
        return _SPACES.sub(_gap, text)

    def decode(self, text: str) -> str:
        return _MARKED.sub(_meaning, text)

    def settled(self, text: str) -> str:
        unfinished = _UNFINISHED.search(text)
        return text[: unfinished.start(1)] if unfinished else text


class Json(Text):
    """The codec `json` for targets that are JSON values: `«key: text; list: [1; true]; object: «key: text»»`.

    Strings are encoded by the codec `text`, and quoted if they are ambiguous otherwise. A number keeps its digits.
    Prompts are encoded by the codec `text`.
    """

    name = "json"
    nests = True

    def encode(self, text: str) -> str:
        try:
            value = json.loads(text, parse_float=_Number, parse_int=_Number, parse_constant=_refuse)
            form = _string(value, None) if type(value) is str else _form(value)  # see `_Reader.document`
            form.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                "the text is JSON with half a character (a lone surrogate)", "write it in UTF-8"
            ) from error
        except ValueError as error:
            raise UsageError(f"the text is not JSON ({error}): {_short(text)}", "use codec: text for it") from error
        except RecursionError as error:
            raise UsageError(f"the text is JSON nested too deeply: {_short(text)}") from error
        return form

    def decode(self, text: str) -> str:
        """Return JSON, or a malformed text unchanged, so that half an object never passes for a whole one."""
        try:
            return _Reader(text).document()
        except (_Malformed, RecursionError):
            return text

    def canonical(self, text: str) -> str:
        return self.decode(self.encode(text))

    def settled(self, text: str) -> str:
        return ""


_CODECS = {codec.name: codec for codec in (Codec(), Text(), Json())}
NAMES = tuple(_CODECS)


def codec_named(name: str) -> Codec:
    """Return the codec with a given name.

    Raises:
        UsageError: No codec has this name.
    """
    if name not in _CODECS:
        raise UsageError(f"unknown codec {name!r}", f"use one of {', '.join(NAMES)}")
    return _CODECS[name]


def _gap(match: re.Match[str]) -> str:
    """Return the form of a run of whitespace.

    A single space between words is unchanged. Any other run becomes its marks and a space, which starts the next word.
    """
    run, last = match[0], match.end() == len(match.string)
    if run == " " and match.start() and not last:
        return run
    marks = []
    for character, group in itertools.groupby(run):
        count = len(list(group))
        if character == " ":
            marks += [f"′{min(9, count - start)}" for start in range(0, count, 9)]
        else:
            marks += [_BREAKS[character]] * count
    return "".join(marks) + ("" if last else " ")


def _meaning(match: re.Match[str]) -> str:
    gaps, number = match.groups()
    if gaps:
        return _GAPS.sub(lambda gap: _GAP[gap[0]], gaps)
    if number:
        code = int(number, 16)
        return match[0] if code > 0x10FFFF or 0xD800 <= code < 0xE000 else chr(code)
    return _MEANING.get(match[0], match[0])


def linear_form(value: Any) -> str:
    """Return the form of a JSON value inside an object or a list of the codec `json`."""
    return _form(value)


def linear_key(name: str) -> str:
    """Return the form of the name of a property of the codec `json`."""
    return _string(name, _BARE_KEY)


class _Number(str):
    """The digits of a JSON number."""


class _Malformed(ValueError):
    """A text that is not in the linear form."""


_TEXT = Text()
_LITERAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_QUOTED = re.compile(r'"((?:[^"′]|′.)*)"', re.DOTALL)
_BARE_KEY, _BARE = re.compile(r'[^«»\[\];":]+'), re.compile(r'[^«»\[\];"]+')
_BLANK = re.compile(" *")


def _form(value: Any) -> str:
    if isinstance(value, dict):
        return OPEN + "; ".join(f"{_string(key, _BARE_KEY)}: {_form(item)}" for key, item in value.items()) + CLOSE
    if isinstance(value, list):
        return f"[{'; '.join(map(_form, value))}]"
    if isinstance(value, str) and not isinstance(value, _Number):
        return _string(value, _BARE)
    return value if isinstance(value, _Number) else json.dumps(value)


def _string(value: str, bare: re.Pattern[str] | None) -> str:
    form = _TEXT.encode(value)
    if bare and bare.fullmatch(form) and not _LITERAL.fullmatch(form):
        return form
    return '"' + form.replace('"', '′"') + '"'


class _Reader:
    """A left-to-right parser of the linear form that returns JSON."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def document(self) -> str:
        """Return the whole text as JSON. A bare string is malformed, or else every sentence would pass for JSON."""
        value = self._value()
        if value.startswith('"') and not self._text.lstrip(" ").startswith('"'):
            raise _Malformed
        if self._at != len(self._text):
            raise _Malformed
        return value

    def _value(self) -> str:
        if self._next(OPEN):
            return "{" + ", ".join(self._parts(CLOSE, self._entry)) + "}"
        if self._next("["):
            return "[" + ", ".join(self._parts("]", self._value)) + "]"
        return self._scalar(_BARE)

    def _entry(self) -> str:
        key = self._scalar(_BARE_KEY, literals=False)
        if not self._next(":"):
            raise _Malformed
        return f"{key}: {self._value()}"

    def _parts(self, end: str, parse: Any) -> list[str]:
        if self._next(end):
            return []
        parts = [parse()]
        while self._next(";"):
            parts.append(parse())
        if not self._next(end):
            raise _Malformed
        return parts

    def _scalar(self, bare: re.Pattern[str], *, literals: bool = True) -> str:
        if quoted := _QUOTED.match(self._text, self._at):
            self._skip(quoted.end())
            return _quote(quoted[1])
        match = bare.match(self._text, self._at)
        if not match:
            raise _Malformed
        self._skip(match.end())
        form = match[0].rstrip(" ")
        return form if literals and _LITERAL.fullmatch(form) else _quote(form)

    def _next(self, mark: str) -> bool:
        """Skip a mark and the spaces around it, and return True; return False if the mark does not come next."""
        self._skip(self._at)
        if not self._text.startswith(mark, self._at):
            return False
        self._skip(self._at + 1)
        return True

    def _skip(self, at: int) -> None:
        blanks = _BLANK.match(self._text, at)
        self._at = blanks.end() if blanks else at


def _quote(form: str) -> str:
    return json.dumps(_TEXT.decode(form), ensure_ascii=False)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")

"""The grammar of answers that are valid under a JSON schema, in llguidance's dialect of Lark.

A grammar describes what the model writes, which is not always JSON: the codec `json` has a linear form of its own, with
bare strings and other brackets. So the schema is translated here, in one of two spellings, and llguidance does what
takes speed: from a grammar and the tokens so far, it computes which tokens may follow.

The grammar may accept less than the schema, and never more. Properties come in the order of the schema, and those that
it does not name only if it has `additionalProperties`. Keywords without a translation are refused, since an answer that
ignores them might be invalid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_ft.core.codecs import CLOSE, OPEN, Codec, linear_form, linear_key
from lora_ft.core.errors import UsageError

_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "format"}
_ANNOTATIONS |= {"$schema", "$id", "$comment", "$defs", "definitions", "discriminator"}
_NUMBER = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties", "minProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern"},
    "number": _NUMBER,
    "integer": _NUMBER,
    "boolean": set[str](),
    "null": set[str](),
}
"""Supported keywords of each type."""
MAX_PROPERTIES = 1_000
"""Properties of a schema in all. llguidance recurses once for each, in 3.3 KB of a stack of 8 MB on Linux. A stack that
is full ends the process: 3,000 properties did."""
# The model may write a name with any tokens; otherwise llguidance would allow only those of its own tokenization.
_NO_FORCING = '%llguidance {"no_forcing": true}'
_ANY: dict[str, Any] = {"type": ["object", "array", "string", "number", "boolean", "null"]}
_ANY_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": True}

# llguidance finds the end of a string by bytes and never looks back, but « and » share their first byte with letters.
# So the grammar of the linear form, and the text of tokens that it sees, have braces for marks, and the reverse.
_SWAP = str.maketrans(f"{OPEN}{CLOSE}{{}}", f"{{}}{OPEN}{CLOSE}")

# Terminals of both spellings. PLAIN characters stand for themselves in an encoded string, so lengths and patterns hold
# for the decoded string as well; a LITERAL (and the spaces behind it) would be read as a number, true, false or null.
_LINEAR_TERMINALS = r"""
LITERAL: /(-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null) */
BARE: /[^ {}\[\]";\n][^{}\[\]";\n]*/ & ~LITERAL
QUOTED: /"([^"′\n]|′[^\n])*"/
BARE_PLAIN: /[^ {}«»\[\]";′•\n]([^{}«»\[\]";′•\n]*[^ {}«»\[\]";′•\n])?/ & ~LITERAL
QUOTED_PLAIN: /[^"′•{}«»\n]*/
KEY: /[^ {}«»\[\]":;′•\n]([^{}«»\[\]":;′•\n]*[^ {}«»\[\]":;′•\n])?/
"""
_JSON_TERMINALS = r"""
KEY: /[^"\\\x00-\x1f]+/
"""


@dataclass(frozen=True)
class _Spelling:
    """How values are written.

    Attributes:
        linear: True for the codec `json`, False for JSON text.
        separator: Text between two values.
        terminals: Definitions that the rules use.
    """

    linear: bool
    separator: str
    terminals: str

    def value(self, value: Any) -> str:
        return linear_form(value).translate(_SWAP) if self.linear else json.dumps(value, ensure_ascii=False)

    def key(self, name: str) -> str:
        return linear_key(name).translate(_SWAP) if self.linear else json.dumps(name, ensure_ascii=False)


_LINEAR = _Spelling(True, "; ", _LINEAR_TERMINALS)
_JSON = _Spelling(False, ", ", _JSON_TERMINALS)


@dataclass(frozen=True)
class JsonGrammar:
    """The grammar of a schema.

    Attributes:
        lark: Rules, for llguidance.
        characters: Characters that some answers need, since names and constants of the schema have them.
    """

    lark: str
    characters: frozenset[str]

    @classmethod
    def of(cls, schema: Mapping[str, Any], codec: Codec) -> JsonGrammar:
        """Return the grammar of the encoded answers.

        Args:
            schema: A JSON schema whose values are objects or lists.
            codec: Codec of the answers.

        Raises:
            UsageError: The schema has a keyword that cannot be enforced, or is malformed.
        """
        writer = _Writer(schema, _LINEAR if codec.nests else _JSON)
        try:
            root = writer.value(schema, "", root=True)
        except RecursionError as error:
            raise UsageError("json_schema is nested too deeply", "flatten it") from error
        except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError) as error:
            raise UsageError(f"json_schema is malformed ({error})", "correct the schema") from error
        rules = [_NO_FORCING, f'start: " "? {root}', writer.spelling.terminals, *writer.rules]
        return cls("\n".join(rules), frozenset("".join(writer.literals)))


def token_text(text: str, codec: Codec) -> str:
    """Return the text of a token as the grammar has it, from the text that it adds to the encoded answer.

    A token that is only a part of a form, such as the first mark of an escape, means nothing alone: it becomes "".
    """
    if codec.nests:
        return text.translate(_SWAP)
    return codec.decode(text) if codec.settled(text) == text else ""


class _Writer:
    """Translation of a schema into rules, one for each part of the schema."""

    def __init__(self, schema: Mapping[str, Any], spelling: _Spelling) -> None:
        self._schema, self.spelling = schema, spelling
        self.rules: list[str] = []
        self.literals: list[str] = []
        self._named: dict[str, str] = {}  # rule of each $ref, and of any value
        self._count = 0
        self._properties = 0

    def value(self, schema: Any, where: str, *, root: bool = False) -> str:
        """Return the rule of a part of the schema.

        Args:
            schema: The part.
            where: Its place, for errors.
            root: The part is the whole answer, which must be an object or a list.
        """
        if schema is True or schema == {}:
            return self._any(root)
        if not isinstance(schema, Mapping):
            raise _refused(where, f"has no valid value (got {schema!r:.60})")
        content = {name: value for name, value in schema.items() if name not in _ANNOTATIONS}
        for name in ("$ref", "anyOf", "allOf"):
            if name in content:
                if len(content) > 1:
                    raise _refused(where, f"combines {name} with {', '.join(sorted(content.keys() - {name}))}")
                return self._combined(name, content[name], where, root)
        if "enum" in content or "const" in content:
            return self._constants(content, where, root)
        unknown = sorted(content.keys() - {"type"} - set().union(*_KEYWORDS.values()))
        if unknown:
            raise _refused(where, f"has the keyword {unknown[0]}, which cannot be enforced")
        kinds = content.get("type") or next((kind for kind, names in _KEYWORDS.items() if names & content.keys()), None)
        if kinds is None:
            return self._any(root)
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        if root and not set(kinds) <= {"object", "array"}:
            raise _refused(where, f"has the type {kinds[0]}, but an answer is an object or a list")
        return self._alternatives([self._typed(kind, content, where) for kind in kinds])

    def _combined(self, name: str, value: Any, where: str, root: bool) -> str:
        if name == "$ref":
            return self._reference(value, root)
        if name == "allOf" and len(value) != 1:
            raise _refused(where, f"has allOf with {len(value)} schemas")
        return self._alternatives([self.value(part, f"{where}/{name}/{i}", root=root) for i, part in enumerate(value)])

    def _reference(self, pointer: str, root: bool) -> str:
        if pointer in self._named:
            return self._named[pointer]
        target: Any = self._schema
        if not pointer.startswith("#"):
            raise _refused(pointer, "is in another file")
        for part in pointer[1:].split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            target = target[int(name)] if isinstance(target, list) else target.get(name)
            if target is None:
                raise _refused(pointer, "does not exist")
        self._named[pointer] = name = self._name()
        self.rules.append(f"{name}: {self.value(target, pointer, root=root)}")
        return name

    def _any(self, root: bool) -> str:
        key = "any root" if root else "any"
        if key not in self._named:
            self._named[key] = name = self._name()
            kinds = _ANY["type"][:2] if root else _ANY["type"]
            self.rules.append(f"{name}: {' | '.join(self._typed(kind, _ANY_OBJECT, '') for kind in kinds)}")
        return self._named[key]

    def _constants(self, content: Mapping[str, Any], where: str, root: bool) -> str:
        values = [content["const"]] if "const" in content else content["enum"]
        others = sorted(content.keys() - {"enum", "const", "type"})
        if others or {"enum", "const"} <= content.keys():
            raise _refused(where, f"combines constants with {(others or ['enum'])[0]}")
        kinds = content.get("type", list(_KEYWORDS))
        kinds = [kinds] if isinstance(kinds, str) else kinds
        values = [value for value in values if any(_is(value, kind) for kind in kinds)]
        if not values or (root and not all(isinstance(value, dict | list) for value in values)):
            raise _refused(where, "allows no object or list" if root else "allows no value")
        return self._alternatives([self._literal(self.spelling.value(value)) for value in values])

    def _typed(self, kind: str, content: Mapping[str, Any], where: str) -> str:
        if kind == "object":
            return self._object(content, where)
        if kind == "array":
            return self._array(content, where)
        if kind == "string":
            return self._string(content)
        if kind not in _KEYWORDS:
            raise _refused(where, f"has the type {kind}, which is not a type of JSON")
        return self._json({"type": kind} | {name: content[name] for name in _KEYWORDS[kind] & content.keys()})

    def _object(self, content: Mapping[str, Any], where: str) -> str:
        properties: dict[str, Any] = content.get("properties", {})
        self._properties += len(properties)
        if self._properties > MAX_PROPERTIES:
            raise _refused(where, f"exceeds {MAX_PROPERTIES:,} properties in all")
        required, least = set(content.get("required", ())), content.get("minProperties", 0)
        extra = content.get("additionalProperties", not properties)
        if missing := sorted(required - properties.keys()):
            raise _refused(where, f"requires {missing[0]!r}, which `properties` does not describe")
        if least > max(1, len(required)):
            raise _refused(where, f"has minProperties {least}, more than 1 and than its required properties")
        entries = []
        for name, schema in properties.items():
            if schema is False:
                continue
            key = self._literal(self.spelling.key(name) + ": ")
            entries.append((f"{key} {self.value(schema, f'{where}/properties/{name}')}", name in required))
        separator, end = self._literal(self.spelling.separator), self._literal("}")
        further = self._further(extra, properties, where) if extra is not False else None
        # `first` is the rest of an object that has no entry yet, `more` of one that has
        more = self._rule(f"({separator} {further})* {end}" if further else end)
        first = ([f"{further} ({separator} {further})* {end}"] if further else []) + ([] if least else [end])
        for entry, is_required in reversed(entries):
            first = [f"{entry} {more}", *([] if is_required else first)]
            more = self._rule(f"{separator} {entry} {more}" + ("" if is_required else f" | {more}"))
            first = [self._alternatives(first)]
        if not first:
            raise _refused(where, "allows no properties, but has minProperties")
        return self._rule(f"{self._literal('{')} ({' | '.join(first)})")

    def _further(self, schema: Any, properties: Iterable[str], where: str) -> str:
        """Return the rule of an entry that `properties` does not name."""
        names = "|".join(re.escape(name).replace("/", r"\/") for name in properties)
        key = self._terminal(f"KEY & ~/({names})/" if names else "KEY")
        if not self.spelling.linear:
            key = self._terminal(rf'"\"" {key} "\""')
        value = self.value(schema, f"{where}/additionalProperties")
        return self._rule(f"{key} {self._literal(': ')} {value}")

    def _array(self, content: Mapping[str, Any], where: str) -> str:
        least, most = content.get("minItems", 0), content.get("maxItems")
        if most is not None and most < max(1, least):
            if least:
                raise _refused(where, f"has maxItems {most}, less than minItems")
            return self._literal("[]")
        item = self.value(content.get("items", True), f"{where}/items")
        items = item
        if most != 1:
            limit = "" if most is None else most - 1
            items += f" ({self._literal(self.spelling.separator)} {item}){{{max(0, least - 1)},{limit}}}"
        return self._rule(f'"[" {items} "]"' if least else f'"[" ({items})? "]"')

    def _string(self, content: Mapping[str, Any]) -> str:
        limits = {name: content[name] for name in _KEYWORDS["string"] & content.keys()}
        if not self.spelling.linear:
            return self._json({"type": "string"} | limits)
        if not limits:
            return self._rule("BARE | QUOTED")
        conditions = []
        if "pattern" in limits:
            conditions.append(_whole_pattern(limits["pattern"]))
        if limits.keys() - {"pattern"}:
            conditions.append(rf"[^\n]{{{limits.get('minLength', 0)},{limits.get('maxLength', '')}}}")
        both = " & ".join(f"/{condition}/" for condition in conditions)
        bare, inner = self._terminal(f"BARE_PLAIN & {both}"), self._terminal(f"QUOTED_PLAIN & {both}")
        quoted = self._terminal(rf'"\"" {inner} "\""')
        return self._rule(f"{bare} | {quoted}")

    def _json(self, schema: dict[str, Any]) -> str:
        """Return the rule of a value that both spellings write as JSON, which llguidance translates."""
        return self._rule(f"%json {json.dumps(schema)}")

    def _literal(self, text: str) -> str:
        self.literals.append(text)
        return json.dumps(text, ensure_ascii=False)

    def _alternatives(self, rules: Sequence[str]) -> str:
        return rules[0] if len(rules) == 1 else self._rule(" | ".join(rules))

    def _rule(self, body: str) -> str:
        name = self._name()
        self.rules.append(f"{name}: {body}")
        return name

    def _terminal(self, body: str) -> str:
        name = self._name().upper()
        self.rules.append(f"{name}: {body}")
        return name

    def _name(self) -> str:
        self._count += 1
        return f"r{self._count}"


def _whole_pattern(pattern: str) -> str:
    """Return a regular expression for whole strings, from one that JSON schemas search for in a string."""
    begins, ends = pattern.startswith("^"), re.search(r"(?<!\\)(\\\\)*\$$", pattern) is not None
    anything = r"[^\n]*"
    inner = pattern[begins : len(pattern) - ends]
    whole = ("" if begins else anything) + f"({inner})" + ("" if ends else anything)
    return re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", whole)


def _is(value: Any, kind: str) -> bool:
    """Return whether a constant has a type of JSON Schema."""
    if kind in ("number", "integer"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (kind == "number" or value == int(value))
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    return isinstance(value, types[kind])


def _refused(where: str, reason: str) -> UsageError:
    place = f"json_schema at {where}" if where else "json_schema"
    return UsageError(f"{place} {reason}", "see the keywords in docs/guides/structured-output.md")

"""Read rows of JSON: lists of objects, JSON Lines, and the layouts of pandas, datasets and SQuAD.

The content of a file decides before its name. Several values are JSON Lines. A single value is a document, and its
shape determines where the rows are. Ambiguous shapes are refused with a specific error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_ft.core.columns import ABSENT, Column
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.json_limits import MAX_DEPTH, JsonLimits, OutOfBoundsError, bounded_decoder, lines_at
from lora_ft.data.formats.content import MAX_CELL, Content, Located, Row

LINES = (".jsonl", ".ndjson")
"""Endings of files in which a single object is a row, not a document."""
_BLANK = re.compile(r"[ \t\r\n]*")
_INDEX = re.compile(r"\d{1,12}")


def read_json_rows(content: Content, *, encoding: str | None = None, field: str | None = None) -> list[Located]:
    """Return the rows of a JSON file, located by "file:line" in JSON Lines and "file[row] (line N)" in a document.

    Locations lack the line if the document is on one line, or if other objects are nested as deep as the rows.

    Args:
        content: Content of the file.
        encoding: Encoding set by the task. Default: detected, usually UTF-8.
        field: Column or path of the rows in a document that is an object.

    Raises:
        LoraFtError: The file is damaged, or a row is not an object.
        UsageError: The document has no rows at `field`, or its shape is ambiguous.
    """
    text, file = content.text(encoding), content.file
    values = list(_values(text, str(file)))
    document = values[0][1] if len(values) == 1 else None
    if field is not None:
        if not isinstance(document, dict):
            raise UsageError(f"{file} is not one JSON object", "remove data.field, which names rows inside one")
        return _rows(_of_field(document, field, str(file)), f"{file}: {field}", text, 2 if field in document else None)
    if isinstance(document, list) and not (document and content.ending in LINES and _is_scalars(document)):
        return _rows(document, str(file), text, 1)
    if isinstance(document, dict) and content.ending not in LINES:
        return _of_document(document, str(file), text)
    return [(f"{file}:{line}", _object(value, f"{file}:{line}")) for line, value in values]


def _values(text: str, file: str) -> Iterator[tuple[int, Any]]:
    """Yield the line and the value of each JSON value in a text."""
    decoder, place, line, counted = bounded_decoder(), 0, 1, 0
    while (place := _BLANK.match(text, place).end()) < len(text):  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, place), place
        where = f"{file}:{line}"
        try:
            value, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise LoraFtError(
                f"{file}:{text.count(chr(10), 0, error.pos) + 1} is not JSON ({error.msg})",
                "check whether the file is cut off or has another format",
            ) from error
        except OutOfBoundsError as error:
            raise LoraFtError(f"{where} {error}", error.remedy) from error
        except RecursionError as error:
            raise LoraFtError(f"{where} is nested deeper than {MAX_DEPTH} levels", "write flat rows") from error
        part = text[place:end]
        if part.count("[") + part.count("{") > MAX_DEPTH:
            JsonLimits(where, max_string=4 * MAX_CELL).check(part.encode("utf-8", "surrogatepass"))
        yield line, value
        place = end


def _of_field(document: dict[str, Any], field: str, file: str) -> list[Any]:
    rows = Column(field).find(document)
    if isinstance(rows, list):
        return rows
    if isinstance(rows, dict):
        return [row for _, row in _of_document(rows, f"{file}: {field}")]
    missing = f"has no field '{field}'" if rows is ABSENT else f"has no list in the field '{field}'"
    raise UsageError(f"{file} {missing}", f"correct data.field; the document has {', '.join(map(str, document))}")


def _of_document(document: dict[str, Any], file: str, text: str | None = None) -> list[Located]:
    """Return the rows of an object, by its shape; pass `text`, the whole file, only if the object is all of it."""
    if {"columns", "data"} <= document.keys() <= {"columns", "index", "data"}:
        return _of_split(document, file)
    if _is_columns(document):
        return _of_columns(document, file)
    lists = [key for key, value in document.items() if isinstance(value, list) and value and _is_objects(value)]
    if "data" in lists or len(lists) == 1:
        key = "data" if "data" in lists else lists[0]
        return _rows(document[key], f"{file}: {key}", text or "", 2 if text else None)
    if lists:
        raise UsageError(f"{file} has several lists of objects", f"set data.field to one of {', '.join(lists)}")
    values = list(document.values())
    if len(values) > 0 and all(isinstance(value, list) for value in values):
        return _of_columns(document, file)
    if values and all(isinstance(value, dict) and value for value in values):
        return _of_frame(document, file)
    raise LoraFtError(f"{file} is not a list of objects", "write [{...}, {...}], JSON Lines, or set data.field")


def _of_split(document: dict[str, Any], file: str) -> list[Located]:
    """Return the rows of pandas' orient "split"."""
    names, rows = document["columns"], document["data"]
    if not (isinstance(names, list) and isinstance(rows, list) and all(isinstance(name, str) for name in names)):
        raise LoraFtError(f"{file} has the keys of pandas' orient 'split', but not its lists", _RECORDS)
    if len(set(names)) < len(names):
        raise UsageError(f"{file} has two columns of the same name", "rename or remove one of them")
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            raise LoraFtError(f"{file}: data[{i}] is not a list of {len(names)} values", _RECORDS)
    return [(f"{file}: data[{i}]", dict(zip(names, row, strict=True))) for i, row in enumerate(rows)]


def _is_columns(document: Mapping[str, Any]) -> bool:
    """Return whether an object holds columns of equal length, not all of objects. Lists beside rows are shorter."""
    lists = [value for value in document.values() if isinstance(value, list) and value]
    return 1 < len(lists) == len(document) and len(set(map(len, lists))) == 1 and not all(map(_is_objects, lists))


def _of_columns(document: dict[str, list[Any]], file: str) -> list[Located]:
    """Return the rows of an object of columns, as written by `Dataset.to_dict` and pandas' orient "list"."""
    lengths = {len(values) for values in document.values()}
    if len(lengths) > 1:
        raise LoraFtError(f"{file} has columns of different lengths", _RECORDS)
    return [
        (f"{file}[{i}]", dict(zip(document, row, strict=True)))
        for i, row in enumerate(zip(*document.values(), strict=True))
    ]


def _of_frame(document: dict[str, dict[str, Any]], file: str) -> list[Located]:
    """Return the rows of pandas' orient "index" (outer keys are numbers) or "columns" (inner keys are numbers)."""
    outer, inner = _is_index(document), all(_is_index(value) for value in document.values())
    if outer and not inner:
        return [(f"{file}[{key}]", row) for key, row in document.items()]
    keys = list(next(iter(document.values())))
    if inner and not outer and all(list(value) == keys for value in document.values()):
        return [(f"{file}[{key}]", {name: value[key] for name, value in document.items()}) for key in keys]
    raise UsageError(f"{file} is an object of objects, which may be rows or columns", _RECORDS)


def _rows(values: Sequence[Any], file: str, text: str, depth: int | None) -> list[Located]:
    """Return the rows of a list; the rows of SQuAD's own files are its questions.

    Args:
        values: Items of the list.
        file: Location of the list, for the locations of rows.
        text: Text of the whole file.
        depth: Number of lists and objects around each row, if known.
    """
    if values and all(isinstance(value, dict) and isinstance(value.get("paragraphs"), list) for value in values):
        return list(_of_squad(values, file))
    if values and all(isinstance(value, list) for value in values):
        raise LoraFtError(f"{file} is a list of lists, without names of columns", _RECORDS)
    rows = [(f"{file}[{i}]", _object(value, f"{file}[{i}]")) for i, value in enumerate(values)]
    lines = lines_at(text, depth) if depth is not None and "\n" in text.strip() else []
    if len(lines) != len(rows):  # other objects are nested as deep as the rows
        return rows
    return [(f"{where} (line {line})", row) for (where, row), line in zip(rows, lines, strict=True)]


def _of_squad(articles: Sequence[dict[str, Any]], file: str) -> Iterator[Located]:
    """Yield the questions of SQuAD's articles and paragraphs, with the columns of `squad` on the Hub."""
    for i, article in enumerate(articles):
        for j, paragraph in enumerate(article["paragraphs"]):
            place = f"{file}[{i}].paragraphs[{j}]"
            for k, question in enumerate(_list(_object(paragraph, place).get("qas"), f"{place}.qas")):
                where = f"{place}.qas[{k}]"
                answers = _list(_object(question, where).get("answers", []), f"{where}.answers")
                columns: dict[str, list[Any]] = {"text": [], "answer_start": []}
                for n, answer in enumerate(answers):
                    for key, values in columns.items():
                        values.append(_object(answer, f"{where}.answers[{n}]").get(key))
                yield (
                    where,
                    {
                        "title": article.get("title"),
                        "context": paragraph.get("context"),
                        **question,
                        "answers": columns,
                    },
                )


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise LoraFtError(f"{where} is not an object (got {type(value).__name__})", 'write each row as {"column": ...}')
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise LoraFtError(f"{where} is not a list", "correct it, or write flat rows")
    return value


def _is_objects(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _is_scalars(values: list[Any]) -> bool:
    return not any(isinstance(value, dict | list) for value in values)


def _is_index(value: Mapping[str, Any]) -> bool:
    return all(_INDEX.fullmatch(key) for key in value)


_RECORDS = 'write pandas\' orient="records", or JSON Lines'

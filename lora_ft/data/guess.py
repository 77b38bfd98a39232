"""Guess a task from rows: the columns that the model reads, the column that it writes, and a prompt.

Usual column names (question, answer, summary, label, ...) decide first. Otherwise the texts decide: few distinct short
targets are labels, and targets much shorter than their long inputs are summaries. A guess is a starting point for the
user, so it comes with its reasons. Rows without enough evidence are refused.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from lora_ft.core.columns import Column, is_empty
from lora_ft.core.errors import UsageError

SAMPLE = 5000
"""Approximate number of rows that a guess is based on, evenly spaced."""

_QUESTIONS = ("question", "query", "questions")
_ANSWERS = ("answer", "answers.text[0]", "answers[0]", "answer.text", "answers", "best_answer", "final_answer")
_CONTEXTS = ("context", "passage", "paragraph", "background", "evidence")
_DOCUMENTS = ("document", "article", "dialogue", "conversation", "transcript", "report", "body", "content", "text")
_SUMMARIES = ("summary", "highlights", "abstract", "headline", "title", "tldr")
_INSTRUCTIONS = ("instruction", "prompt", "task")
_EXTRAS = ("input", "context")
_RESPONSES = ("output", "response", "completion", "target", "answer", "chosen")
_LABELS = ("label", "intent", "category", "class", "sentiment", "topic", "team", "emotion", "tag", "labels")
_PLAIN_TARGETS = ("target", "output", "response", "completion")
_TARGETS = (*_RESPONSES, "translation", "correction", "corrected", "code", "sql", "command", "result", "to", "y")
_SOURCES = ("input", "text", "source", "sentence", "message", "utterance", "question", "from", "x")
_REFERENCES = ("refs", "references", "answers.text", "answers", "targets")
_USERS = ("user", "human", "prompter")
_IDENTIFIERS = re.compile(r"(?:.*[_-])?(?:id|idx|index|uuid|guid|number|row|url|source_id|hash)", re.IGNORECASE)
_UNWRITABLE = re.compile(r"[{}!:?]")  # a placeholder cannot hold such a name
_MAX_LABEL = 60  # characters
_LONG = 300  # characters; a longer median input is a document


@dataclass(frozen=True)
class Guess:
    """A guessed task, with reasons.

    Attributes:
        kind: Question answering, summarization, classification, instructions, conversation or text to text.
        prompt: Template with the columns that the model reads.
        target: Column that the model writes.
        labels: True if the targets are labels.
        reasons: Explanations for the comments of a task file.
    """

    kind: str
    prompt: str
    target: str
    labels: bool = False
    reasons: list[str] = field(default_factory=list)


def guess_task(rows: Sequence[Mapping[str, Any]], *, target: str | None = None) -> Guess:
    """Return the most likely task for rows.

    Args:
        rows: Training rows, at least one.
        target: Column that the model writes. Default: guessed.

    Raises:
        UsageError: The rows have fewer than two usable columns, or the target cannot be guessed.
    """
    sample = list(islice(rows, 0, None, max(1, len(rows) // SAMPLE)))
    columns = _text_columns(sample)
    unwritable = sorted({str(name) for row in sample for name in row if _UNWRITABLE.search(str(name))})
    needed = 2 if target is None or target in columns else 1
    if len(columns) < needed and unwritable:
        raise UsageError(
            f"the column {unwritable[0]!r} cannot be named in a prompt", "rename it without colons, braces and marks"
        )
    if len(columns) < needed:
        raise UsageError(
            f"the rows have {_listed(columns)}, and a task needs a column to read and a column to write",
            "add a column, or name another file; exports of chats need no columns",
        )
    if target is not None:
        return _with_target(sample, columns, _required(sample, columns, target))
    named = _conversation(sample, columns) or _by_names(sample, columns)
    if named is not None:
        return named
    target = _first(columns, (*_PLAIN_TARGETS, *_SUMMARIES, *_LABELS, *_TARGETS)) or _second_of_two(columns)
    if target is None:
        raise UsageError(
            f"cannot tell which column the model writes (columns: {', '.join(columns)})", "add --target COLUMN"
        )
    return _with_target(sample, columns, target)


def references_of(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the first column with a usual name that holds a list of texts in every row, or None."""
    for name in _REFERENCES:
        column = Column(name)
        if rows and all(_is_texts(column.find(row)) for row in rows):
            return name
    return None


def texts_of(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Return the texts of a column, without empty cells."""
    column = Column(name)
    return [str(value) for row in rows if not is_empty(value := column.find(row))]


def _text_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns and nested paths that hold text or numbers, in the order of the rows."""
    paths: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            paths |= dict.fromkeys(_paths(str(name), value))
    usable = []
    for path in paths:
        values = [Column(path).find(row) for row in rows]
        filled = [value for value in values if not is_empty(value)]
        plain = all(isinstance(value, str | int | float) for value in filled)
        optional = path.lower() in _EXTRAS
        if plain and filled and (optional or len(filled) * 2 > len(rows)) and not _IDENTIFIERS.fullmatch(path):
            usable.append(path)
    return usable


def _paths(name: str, value: Any) -> list[str]:
    """Return the paths of text in a cell: the cell, keys of an object, or the first text or last messages of a list."""
    if _UNWRITABLE.search(name):
        return []
    if isinstance(value, Mapping):
        return [path for key, inner in value.items() for path in _paths(f"{name}.{key}", inner)]
    if isinstance(value, list):
        if value and isinstance(value[0], Mapping):
            text = next((key for key in ("content", "value", "text") if key in value[0]), None)
            return [f"{name}[-2].{text}", f"{name}[-1].{text}"] if text and len(value) > 1 else []
        return [f"{name}[0]"] if value and isinstance(value[0], str) else []
    return [name]


def _conversation(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Guess | None:
    """Return the guess for lists of messages, where the model writes the last message, or None.

    Raises:
        UsageError: The last message is the user's in some rows.
    """
    for path in columns:
        match = re.fullmatch(r"(.+)\[-1\]\.(content|value|text)", path)
        if not match:
            continue
        roles = [Column(f"{match[1]}[-1].{key}").find(row) for row in rows for key in ("role", "from")]
        if count := sum(role in _USERS for role in roles):
            raise UsageError(
                f"the last message of `{match[1]}` is the user's in {count:,} of {len(rows):,} rows",
                "remove it there, since the model writes the last message",
            )
        if (before := f"{match[1]}[-2].{match[2]}") in columns:
            return Guess(
                "conversation",
                f"{{{before}}}",
                path,
                reasons=[f"the last message of `{match[1]}` answers the one before"],
            )
    return None


def _by_names(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Guess | None:
    """Return the guess from column names, or None."""
    question, answer = _first(columns, _QUESTIONS), _first(columns, _ANSWERS)
    if question and answer:
        context = _first(columns, _CONTEXTS)
        if context:
            place = _placeholder(rows, context)
            prompt = f"Answer the question from the context. Question: {{{question}}} Context: {place} Answer:"
            reason = f"columns `{question}`, `{context}` and `{answer}`"
        else:
            prompt, reason = f"Please answer this question: {{{question}}}", f"columns `{question}` and `{answer}`"
        return Guess("question answering", prompt, answer, reasons=[reason])
    document, summary = _first(columns, _DOCUMENTS), _first(columns, _SUMMARIES)
    if document and summary and document != summary:
        return Guess(
            "summarization", f"Summarize: {{{document}}}", summary, reasons=[f"columns `{document}` and `{summary}`"]
        )
    instruction, response = _first(columns, _INSTRUCTIONS), _first(columns, _RESPONSES)
    if instruction and response and not _are_labels(texts_of(rows, response)):
        extra = _first([name for name in columns if name not in (instruction, response)], _EXTRAS)
        names = [f"`{name}`" for name in (instruction, extra, response) if name]
        prompt = f"{{{instruction}}}" + (f" {_placeholder(rows, extra)}" if extra else "")
        return Guess("instructions", prompt, response, reasons=[f"columns {', '.join(names[:-1])} and {names[-1]}"])
    return None


def _with_target(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], target: str) -> Guess:
    """Return the guess for a known target, from its texts and those of the most likely source."""
    inputs = [name for name in columns if name != target and target not in name.split("[")[0]]
    if not inputs:
        raise UsageError(f"the rows have no column besides the target {target}", "add a column for the model to read")
    source = _first(inputs, (*_QUESTIONS, *_DOCUMENTS, *_SOURCES)) or max(
        inputs, key=lambda name: _typical(texts_of(rows, name))
    )
    sources, targets = texts_of(rows, source), texts_of(rows, target)
    reasons = [f"the model reads `{source}` and writes `{target}`"]
    if _are_labels(targets):
        distinct = len(set(targets))
        reasons.append(f"`{target}` has {distinct:,} distinct values in {len(targets):,} rows, so they are labels")
        return Guess("classification", f"Classify this text: {{{source}}} Label:", target, labels=True, reasons=reasons)
    if sum(text.rstrip().endswith("?") for text in sources) > 0.7 * len(sources):
        reasons.append("most inputs are questions")
        return Guess("question answering", f"Please answer this question: {{{source}}}", target, reasons=reasons)
    if _typical(sources) > _LONG and _typical(targets) * 2 < _typical(sources):
        reasons.append("targets are much shorter than their long inputs")
        return Guess("summarization", f"Summarize: {{{source}}}", target, reasons=reasons)
    return Guess("text to text", f"{{{source}}}", target, reasons=reasons)


def _required(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], target: str) -> str:
    if target not in columns and any(is_empty(Column(target).find(row)) for row in rows):
        raise UsageError(
            f"the rows have no column {target} with text (columns: {', '.join(columns)})", "correct --target"
        )
    return target


def _first(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the column for the first of `names` that exists, ignoring case, or None."""
    by_name = {name.lower(): name for name in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def _second_of_two(columns: Sequence[str]) -> str | None:
    return columns[1] if len(columns) == 2 else None


def _placeholder(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the placeholder of a column, optional if some rows leave it empty."""
    optional = any(is_empty(Column(name).find(row)) for row in rows)
    return f"{{{name}?}}" if optional else f"{{{name}}}"


def _are_labels(texts: Sequence[str]) -> bool:
    """Return whether texts are short and occur at least five times on average."""
    distinct = set(texts)
    return 2 <= len(distinct) <= len(texts) / 5 and max(map(len, distinct)) <= _MAX_LABEL


def _typical(texts: Sequence[str]) -> float:
    """Return the median length, in characters."""
    return statistics.median(map(len, texts)) if texts else 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item.strip() for item in value)


def _listed(columns: Sequence[str]) -> str:
    return f"one column of text ({columns[0]})" if columns else "no column of text"

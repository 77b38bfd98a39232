"""Collect the messages of all errors that the source raises, with their remedies."""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_AREAS = {
    "Tasks": ("lora_ft/tasks/",),
    "Rows": ("lora_ft/data/",),
    "Chats": ("lora_ft/data/chats/",),
    "Bases, adapters and checkpoints": ("lora_ft/models/", "export/checkpoint/", "lora_ft/merge"),
    "Training and runs": ("lora_ft/train", "lora_ft/training/", "lora_ft/runs/", "lora_ft/run_registry"),
    "Many adapters": ("lora_ft/multi_lora/",),
    "Scores": ("lora_ft/evaluat", "lora_ft/compare"),
    "Export and bundles": ("export/", "lora_ft/deployment/", "lora_ft/export", "lora_ft/bank", "lora_ft/verify"),
    "Serving": ("lora_ft/serving/", "lora_ft/serve"),
    "The Hub": ("lora_ft/publishing/", "lora_ft/push"),
    "Benchmarks": ("lora_ft/bench/",),
    "Files, options and the rest": ("lora_ft/",),
}
_VALUE = "…"


@dataclass(frozen=True, order=True)
class Message:
    """A message of an error, with `…` for each value.

    Attributes:
        text: What is wrong.
        remedy: What to do, or "" where the source computes it.
        module: File that raises it, relative to the repository.
    """

    text: str
    remedy: str
    module: str


def collect() -> list[Message]:
    """Return every message in the source, sorted."""
    messages = set[Message]()
    for folder in ("lora_ft", "export"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            module = path.relative_to(ROOT).as_posix()
            if module.startswith("lora_ft/export/"):
                continue  # a link to the folder export/
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and _raises(node, module) and (text := _text(node.args[0])):
                    messages.add(Message(text, _text(node.args[1]) if len(node.args) > 1 else "", module))
    return sorted(messages)


def _raises(node: ast.Call, module: str) -> bool:
    """Return whether a call creates an error that users see: ours, or a ValueError of the task schema."""
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if not node.args or not name.endswith("Error"):
        return False
    if name == "ValueError":
        return module.startswith("lora_ft/tasks/")
    return name[0].isupper() and not hasattr(builtins, name)


def _text(node: ast.expr) -> str:
    """Return the text of a literal or an f-string with a mark for each value, or "" for another expression."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else _VALUE for part in node.values]
        text = "".join(parts)
        return text if text.strip(f"{_VALUE} :,;().'") else ""
    return ""


def page() -> str:
    """Return the page of all messages."""
    parts = [
        "# Messages",
        "",
        f"Every error that lora-ft raises, from the source. `{_VALUE}` stands for a value. A message ends with what to "
        "do. [Troubleshooting](../troubleshooting.md) explains the most frequent ones.",
    ]
    messages = collect()
    for area in _AREAS:
        parts += _section(area, [message for message in messages if _area(message) == area])
    return "\n".join(parts) + "\n"


def _area(message: Message) -> str:
    """Return the area with the longest prefix of a message's module."""
    fitting = [
        (len(prefix), area)
        for area, prefixes in _AREAS.items()
        for prefix in prefixes
        if message.module.startswith(prefix)
    ]
    return max(fitting)[1]


def _section(area: str, messages: list[Message]) -> list[str]:
    if not messages:
        return []
    rows = sorted({f"| {_cell(message.text)} | {_cell(message.remedy)} |" for message in messages})
    return ["", f"## {area}", "", "| message | remedy |", "|---|---|", *rows]


def _cell(text: str) -> str:
    for mark in "\\|<>[]*_`{}$":
        text = text.replace(mark, f"&#{ord(mark)};")
    return " ".join(text.split())

"""Recognition of files and folders that lora-ft created. Nothing else is ever replaced or deleted.

A folder is recognized by a file that only lora-ft writes there, and only if every other name in it is known. A folder
to which a person added files therefore belongs to that person. The names cover every version, so that older outputs
are recognized.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from lora_ft.core.staging import is_staged

_ANYWHERE = ("README.md", "*.sig", "sbom*.json", ".DS_Store", "Thumbs.db", ".gitattributes")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_TRAINED = ("task.yaml", "data", "metrics.json", "log.jsonl", "adapter", "checkpoint", "tensorboard", "report.html")
_UNFINISHED = (*_TRAINED, "choices.json", "claim.json", "resume", "initial", "checkpoint-*")
_WEIGHTS = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
_GRAPHS = (
    "*.onnx",
    "weights.bin",
    "probe.json",
    "prompt.json",
    "phrases.npy",
    "bank.json",
    "adapters",
    "manifest.json",
)


class _Kind(NamedTuple):
    """A kind of folder: its name, the JSON file that marks it, the test of that file, and the names it may contain."""

    name: str
    mark: str
    is_ours: Callable[[dict[str, Any]], bool]
    entries: tuple[str, ...]


def _is_versioned(content: dict[str, Any]) -> bool:
    versions = content.get("versions")
    return isinstance(versions, dict) and "lora-ft" in versions


_KINDS = (
    _Kind(
        "run",
        "metrics.json",
        lambda content: _is_versioned(content) or "combined" in content,
        (*_TRAINED, *_ADAPTER, *_TOKENIZER, "scores-*.json", "predictions-*.jsonl", "claim.json", "resume"),
    ),
    _Kind(
        "search",
        "search.json",
        lambda content: "trials" in content and "rounds" in content,
        ("search.json", "search.html", "optuna.journal", "trials", "winner"),
    ),
    _Kind("combined adapter", "combined.json", _is_versioned, ("combined.json", *_ADAPTER)),
    _Kind("shrunk base", "shrink.json", _is_versioned, ("shrink.json", *_WEIGHTS, *_TOKENIZER)),
    _Kind("distilled data set", "distill.json", _is_versioned, ("distill.json", "rows.jsonl", "answers.jsonl")),
    _Kind("checkpoint", "merge.json", _is_versioned, ("task.yaml", "merge.json", *_WEIGHTS, *_TOKENIZER)),
    _Kind(
        "bundle",
        "manifest.json",
        lambda content: content.get("format") == "lora-ft bundle",
        (*_GRAPHS, *_WEIGHTS, *_TOKENIZER),
    ),
    _Kind(
        "layout",
        "lora-ft.json",
        lambda content: "layout" in content,
        ("lora-ft.json", "onnx", "*.onnx", "*.onnx_data", "*.onnx.data", "weights.bin", *_WEIGHTS, *_TOKENIZER),
    ),
)


def foreign_reason(folder: Path) -> str | None:
    """Return the reason why lora-ft did not create a folder, as the end of a sentence, or None if it did.

    An empty folder also returns None, so it may be replaced. Files that a killed process left half-written are
    ignored.
    """
    names = sorted(path.name for path in folder.iterdir() if not is_staged(path.name))
    if not names:
        return None
    for kind in _KINDS:
        content = _object(folder / kind.mark)
        if content is None or not kind.is_ours(content):
            continue
        foreign = [name for name in names if not _is_known(folder / name, kind)]
        return f"is a {kind.name} that also contains {_shown(foreign)}" if foreign else None
    if folder.name.endswith(".unfinished"):
        foreign = [name for name in names if not _matches(name, (*_UNFINISHED, *_ADAPTER, *_ANYWHERE))]
        return f"also contains {_shown(foreign)}" if foreign else None
    return f"was not created by lora-ft (it contains {_shown(names)})"


def is_own_file(path: Path) -> bool:
    """Return True if lora-ft wrote a file: scored answers, a report or a page. An empty file counts, too.

    The output of `generate` has the columns of its rows, so it cannot be recognized.
    """
    try:
        with open(path, encoding="utf-8") as file:
            head = file.read(4096)
            if not head.strip():
                return True
            if head.startswith("<!doctype html>"):
                return _PAGE in head or _PAGE_BEFORE in head
            if path.suffix == ".md":
                return head.startswith("# ") and _is_report(path.with_suffix(".json"))
            file.seek(0)
            line = file.readline(16_000_000)
        value = json.loads(line)
    except ValueError:
        return _is_report(path)
    except OSError:
        return False
    return isinstance(value, dict) and value.keys() >= _ANSWER


_ANSWER = {"row", "prompt", "output", "references"}  # keys of a line that `evaluate` writes
_PAGE = '<meta name="generator" content="lora-ft">'
# Pages of 0.1.0 name no generator. They are recognized by this line, which no other page has.
_PAGE_BEFORE = "default-src 'none'; style-src 'unsafe-inline'\">"


def _is_report(path: Path) -> bool:
    """Return True if a JSON file is a report of `bench` or of a grid."""
    content = _object(path)
    return content is not None and "version" in content and bool({"suite", "recipes", "runs"} & content.keys())


def _object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None."""
    try:
        value = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_known(path: Path, kind: _Kind) -> bool:
    if _matches(path.name, (*kind.entries, *_ANYWHERE)):
        return True
    # A folder of a Triton repository is named after its model.
    return kind.name == "layout" and (path / "config.pbtxt").is_file()


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _shown(names: list[str]) -> str:
    shown = ", ".join(ascii(name)[1:-1] for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown

"""Describe every key of a task: as JSON Schema for editors, and as a page of the reference."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from lora_ft.tasks import card, data, evaluate, generate, lengths, lora, schema, search, train
from lora_ft.tasks.lora import PRESETS

MODULES = (schema, data, lengths, lora, train, generate, evaluate, card)
SECTIONS = ("data", "lengths", "lora", "train", "generate", "evaluate", "card")


def descriptions() -> dict[str, dict[str, str]]:
    """Return the docstring of every field, by the name of its class."""
    texts: dict[str, dict[str, str]] = {}
    for module in MODULES:
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef):
                texts[node.name] = dict(_documented(node))
    return texts


def _documented(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield (field, docstring) for each field of a class that a docstring follows."""
    for field, after in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            yield field.target.id, inspect.cleandoc(str(after.value.value))


def json_schema() -> dict[str, Any]:
    """Return the schema of a task file, with a description for each key.

    Keys that a preset of `lora` sets are optional, and a file may contain a `grid` of values next to the task.
    """
    content = schema.Task.model_json_schema()
    for name, fields in descriptions().items():
        definition = content if name == "Task" else content["$defs"].get(name)
        for field, text in fields.items() if definition else ():
            definition["properties"][field]["description"] = text
    content["$defs"]["Lora"].pop("required", None)
    content["properties"]["grid"] = {
        "type": "object",
        "description": "Keys by their dotted names, each with a list of values; every combination is one adapter.",
        "additionalProperties": {"type": "array"},
    }
    space = search.SearchSection.model_json_schema()
    content["$defs"] |= space["$defs"]
    content["properties"]["search"] = space["properties"]["search"] | {
        "description": "Space of `lora-ft search`: keys of lora and train by their dotted names, each with a list of "
        "values, or with low, high and log.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "lora-ft task", **content}


def page() -> str:
    """Return the page of all keys."""
    content = json_schema()
    parts = [
        "# Task keys",
        "",
        "A task is one YAML file. Unknown keys are errors. Names are those of transformers and peft where they mean "
        "the same. Any key can be set on the command line: `--set train.learning_rate=5e-4`.",
        "",
        "Editors that speak YAML's language server (VS Code: extension YAML) complete and check these keys by "
        "[task.schema.json](task.schema.json), which `lora-ft recipes --schema` prints. Save it next to your task "
        "file, and add a first line that names it: `# yaml-language-server: $schema=task.schema.json`.",
        "",
        "## Top level",
        "",
        *_table(content, content, schema.Task),
    ]
    for name in SECTIONS:
        parts += ["", *_section(content, name, _resolve(content, content["properties"][name]), level=2)]
    parts += ["", "## Presets of `lora`", "", "| preset | keys |", "|---|---|"]
    parts += [
        f"| `{name}` | {', '.join(f'`{key}: {value}`' for key, value in keys.items())} |"
        for name, keys in PRESETS.items()
    ]
    return "\n".join(parts) + "\n"


def _section(content: dict[str, Any], name: str, definition: dict[str, Any], *, level: int) -> list[str]:
    """Return the lines of one section and of the sections inside it."""
    model = _model(definition["title"])
    lines = [
        f"{'#' * level} `{name}`",
        "",
        inspect.cleandoc(model.__doc__ or ""),
        "",
        *_table(content, definition, model),
    ]
    for key, value in definition["properties"].items():
        inner = _resolve(content, value)
        if "properties" in inner:
            lines += ["", *_section(content, f"{name}.{key}", inner, level=level + 1)]
    return lines


def _model(title: str) -> type[BaseModel]:
    return next(getattr(module, title) for module in MODULES if hasattr(module, title))


def _table(content: dict[str, Any], definition: dict[str, Any], model: type[BaseModel]) -> list[str]:
    lines = ["| key | type | default | description |", "|---|---|---|---|"]
    for key, value in definition["properties"].items():
        inner = _resolve(content, value)
        nested = "properties" in inner
        kind = f"section [{key}](#{_anchor(definition, content, key)})" if nested else _type(content, value)
        default = "" if nested else _default(value, required=key in definition.get("required", ()))
        text = " ".join(value.get("description", "").split())
        lines.append(f"| `{key}` | {kind} | {default} | {_cell(text)} |")
    return lines


def _anchor(definition: dict[str, Any], content: dict[str, Any], key: str) -> str:
    return key if definition is content else f"{definition['title'].lower()}{key}"


def _resolve(content: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """Return the definition that a property refers to, or the property itself."""
    references = [value, *value.get("anyOf", ())]
    for reference in references:
        if "$ref" in reference:
            definition: dict[str, Any] = content["$defs"][reference["$ref"].rsplit("/", 1)[1]]
            return definition
    return value


def _type(content: dict[str, Any], value: dict[str, Any]) -> str:
    """Return a property's type in words: its kind, its choices and its bounds."""
    if "anyOf" in value:
        kinds = [_type(content, kind) for kind in value["anyOf"] if kind.get("type") != "null"]
        return " or ".join(kinds)
    if "enum" in value or "const" in value:
        return ", ".join(f"`{choice}`" for choice in value.get("enum", [value.get("const")]))
    kind = str(value.get("type", "value"))
    if kind == "array":
        return f"list of {_type(content, value.get('items', {}))}"
    if kind == "object":
        return "mapping"
    words = {"string": "text", "integer": "whole number", "boolean": "`true` or `false`"}.get(kind, kind)
    return words + _bounds(value)


def _bounds(value: dict[str, Any]) -> str:
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    shown = [
        f"{sign} {value[key]:,g}" if value[key] < 1e6 else f"{sign} {value[key]:g}"
        for key, sign in bounds.items()
        if key in value
    ]
    return f", {', '.join(shown)}" if shown else ""


def _default(value: dict[str, Any], *, required: bool) -> str:
    if required:
        return "required"
    default = value.get("default")
    if default in (None, [], {}):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")

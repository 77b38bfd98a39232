"""Limits of the source that a reader notices: lines of a file, and parameters of a function."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 400
MAX_PARAMETERS = 7
# The options of these verbs are those of their commands: keyword-only, each with a default.
VERBS_WITH_OPTIONS = {"evaluate", "export_onnx", "merge_adapters", "search"}
FILES = [
    path
    for folder in ("lora_ft", "export", "benchmarks", "docs", "examples", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.is_relative_to(ROOT / "lora_ft" / "export")  # a link to export/
]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def parameters(function: Function) -> list[ast.arg]:
    """Return all parameters but `self` and `cls`."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return [argument for argument in [*named, *starred] if argument.arg not in ("self", "cls")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_functions_have_few_parameters() -> None:
    long = {}
    for path in FILES:
        top = path.relative_to(ROOT).parts[:2]
        if top[0] in ("tests", "benchmarks") or top == ("lora_ft", "cli"):  # commands and studies have options
            continue
        functions = [
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, Function)
        ]
        long |= {function.name: function for function in functions if len(parameters(function)) > MAX_PARAMETERS}
    assert set(long) == VERBS_WITH_OPTIONS
    for function in long.values():
        assert len(function.args.args) <= 2
        assert all(default is not None for default in function.args.kw_defaults)

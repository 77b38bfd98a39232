"""The names of `lora_ft`: imported lazily, always the functions, typed for the code that uses them."""

from __future__ import annotations

import ast
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import lora_ft
from lora_ft.core import errors

ROOT = Path(__file__).parents[1]
VERBS = ("compare", "evaluate", "export_onnx", "generate", "merge", "merge_adapters", "push", "train", "validate")
HEAVY = ("torch", "transformers", "onnxruntime", "numpy", "tokenizers", "pydantic", "yaml", "peft", "datasets")


def run_python(script: str) -> str:
    """Run a script in a fresh interpreter, and return what it prints."""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_library() -> None:
    script = f"import sys, lora_ft; dir(lora_ft); lora_ft.LoraFtError; print([n for n in {HEAVY} if n in sys.modules])"
    assert run_python(script) == "[]\n"


def test_every_name_of_the_api_exists_and_is_listed() -> None:
    for name in lora_ft.__all__:
        assert getattr(lora_ft, name).__name__ == name if name != "__version__" else lora_ft.__version__
    assert set(lora_ft.__all__) <= set(dir(lora_ft))
    assert list(lora_ft.__all__) == sorted(lora_ft.__all__)


def test_a_missing_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lora_ft' has no attribute 'trian'"):
        _ = lora_ft.trian  # type: ignore[attr-defined]


def test_type_checkers_see_the_names_that_are_exported() -> None:
    tree = ast.parse((ROOT / "lora_ft" / "__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imported = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported | {"__version__"} == set(lora_ft.__all__)


STEPS = (
    "import lora_ft.{name}",
    "from lora_ft.{name} import {name} as f; assert callable(f)",
    "from lora_ft import {name} as f; assert type(f).__name__ == 'function', f",
    "import importlib; m = importlib.import_module('lora_ft.{name}'); assert m.__name__ == 'lora_ft.{name}', m",
    "import lora_ft; assert type(lora_ft.{name}).__name__ == 'function'",
)


@pytest.mark.parametrize("name", ["compare", "generate"])
def test_a_verb_is_its_function_in_every_order_of_imports(name: str) -> None:
    """One interpreter tries all orders; it forgets the package between them."""
    orders = [[step.format(name=name) for step in order] for order in itertools.permutations(STEPS)]
    script = f"""
import sys
for order in {orders!r}:
    for module in [m for m in sys.modules if m in ("lora_ft", "lora_ft.{name}")]:
        del sys.modules[module]
    for step in order:
        exec(step, {{}})
        import lora_ft
        assert type(lora_ft.{name}).__name__ == "function", (order, step)
"""
    run_python(script)


def test_verbs_stay_functions_where_the_command_line_imports_them() -> None:
    names = [*VERBS, "train_many"]
    script = f"""
import lora_ft.cli.verbs, lora_ft.cli.train, lora_ft.cli.bundles, lora_ft.cli.adapters, lora_ft, importlib
for name in {names!r}:
    importlib.import_module("lora_ft." + name)
    assert type(getattr(lora_ft, name)).__name__ == "function", name
"""
    run_python(script)


def test_a_test_may_replace_a_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    before = lora_ft.compare
    monkeypatch.setattr(lora_ft, "compare", len)
    assert lora_ft.compare is len
    monkeypatch.undo()
    assert lora_ft.compare is before


def test_the_package_is_pickled_by_name() -> None:
    """The library `datasets` hashes functions with dill, which follows their modules."""
    assert pickle.loads(pickle.dumps(lora_ft)) is lora_ft


def test_every_kind_of_error_is_public_and_has_an_exit_code() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert {name for name in kinds if not name.endswith("UsageError") or name == "UsageError"} <= set(lora_ft.__all__)
    for name in kinds:
        kind = getattr(errors, name)
        assert kind.exit_code == (2 if issubclass(kind, errors.UsageError) else 1)


@pytest.mark.parametrize("first", [errors.LoraFtError, errors.UsageError])
def test_an_error_of_a_kind_keeps_its_exit_code(first: type[errors.LoraFtError]) -> None:
    with pytest.raises(errors.DataError, match="rows are odd; mend them") as info, errors.raised_as(errors.DataError):
        raise first("rows are odd", "mend them")
    assert info.value.exit_code == first.exit_code
    assert isinstance(info.value, first)
    with pytest.raises(errors.BundleError), errors.raised_as(errors.DataError):
        raise errors.BundleError("another kind")

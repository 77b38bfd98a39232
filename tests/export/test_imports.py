"""A bundle runs where torch, transformers and the rest of training are not installed.

`lora_ft.export` imports nothing of the project but `lora_ft.core`, and neither imports what only training needs.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_ft.export.runtime import Generator
from tests.export.oracle import TEXTS

ROOT = Path(__file__).parents[2]
TRAINING = ["torch", "transformers", "peft", "datasets", "accelerate", "evaluate"]
NOT_OF_THE_RUNTIME = [*TRAINING, "onnx", "safetensors", "pydantic", "yaml"]
BLOCK = """
import importlib.abc, json, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

blocked = set(json.loads(sys.argv[1]))
sys.meta_path.insert(0, Block())
"""
GENERATE = """
import json, sys
from lora_ft.export.runtime import Generator
print(json.dumps(Generator.load(sys.argv[2], threads=1).generate(json.loads(sys.argv[3]))))
"""
EXPORT = sorted(
    "lora_ft." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "export").rglob("*.py")
)
CORE = sorted(f"lora_ft.core.{path.stem}" for path in (ROOT / "lora_ft" / "core").glob("[!_]*.py"))


def python(script: str, *args: str) -> str:
    """Return the output of a script in a fresh interpreter."""
    process = subprocess.run(
        [sys.executable, "-c", script, *args], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_building_and_running_a_bundle_imports_no_training_code(published: Path) -> None:
    script = GENERATE + f"for name in {EXPORT + CORE}: __import__(name)\nprint(json.dumps(sorted(sys.modules)))"
    _, imported = python(script, "[]", str(published), json.dumps(TEXTS)).splitlines()
    names = json.loads(imported)
    assert {"lora_ft.export", "onnx", "onnxruntime"} <= set(names)
    assert not {name.split(".")[0] for name in names} & set(TRAINING)
    assert {name for name in names if name.startswith("lora_ft")} - {"lora_ft", "lora_ft.core"} == {*EXPORT, *CORE}


def test_a_bundle_runs_in_the_base_install(published: Path, generator: Generator) -> None:
    printed = python(BLOCK + GENERATE, json.dumps(NOT_OF_THE_RUNTIME), str(published), json.dumps(TEXTS))
    assert json.loads(printed) == generator.generate(TEXTS)


def test_blocked_imports_fail() -> None:
    script = BLOCK + "try:\n    import yaml\nexcept ModuleNotFoundError as error:\n    print(error)"
    assert python(script, json.dumps(NOT_OF_THE_RUNTIME)).strip() == "yaml is not installed here"


def test_a_graph_is_built_without_training(checkpoint: Path) -> None:
    script = (
        BLOCK + "import pathlib\n"
        "from lora_ft.export.bundle.assemble import read_model\nfrom lora_ft.export.onnx.graphs import decoder_model\n"
        "from lora_ft.export.onnx.t5 import T5\n"
        "print(len(decoder_model(T5(*read_model(pathlib.Path(sys.argv[2])))).graph.node))"
    )
    assert int(python(script, json.dumps(TRAINING), str(checkpoint))) > 10


@pytest.mark.parametrize("name", EXPORT)
def test_export_imports_only_core_and_the_packages_that_it_needs(name: str) -> None:
    allowed = {"numpy", "onnxruntime", "tokenizers"}
    if not name.startswith("lora_ft.export.runtime"):
        allowed |= {"onnx", "safetensors"}
    ours, packages = imports_of(name, everywhere=True)
    assert all(module.startswith(("lora_ft.export", "lora_ft.core")) for module in ours)
    assert packages <= allowed


@pytest.mark.parametrize("name", CORE)
def test_core_imports_only_core_and_base_packages(name: str) -> None:
    ours, packages = imports_of(name, everywhere=False)
    assert all(module.startswith("lora_ft.core") for module in ours)
    assert packages <= {"numpy", "tokenizers"}


def imports_of(name: str, *, everywhere: bool) -> tuple[set[str], set[str]]:
    """Return the modules of the project, and the other packages but Python's own, that a module imports.

    Args:
        name: Dotted name of the module.
        everywhere: Also count imports within functions, which run only where they are called.
    """
    path = ROOT.joinpath(*name.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    tree = ast.parse(source)
    named = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            named.add(str(node.module))
    ours = {module for module in named if module.split(".")[0] == "lora_ft"}
    return ours, {module.split(".")[0] for module in named - ours} - set(sys.stdlib_module_names)

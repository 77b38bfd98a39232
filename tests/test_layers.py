"""The order of packages: a module imports only from its own package and from packages below it.

`ORDER` is the map of the project, lowest first. The verbs (`lora_ft/train.py`, `lora_ft/evaluate.py`, ...) are one
package in this order. They import nouns, and not each other.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    "core",
    "export",
    "tasks",
    "data",
    "runs",
    "models",
    "evaluation",
    "reports",
    "publishing",
    "deployment",
    "serving",
    "training",
    "multi_lora",
    "searching",
    "verbs",
    "deploy",
    "bench",
    "cli",
)
FRONT = {"lora_ft", "lora_ft.__main__"}  # the front door imports verbs lazily; `python -m` starts the command line


def source_files() -> dict[str, Path]:
    """Return every module that is installed, by its dotted name."""
    modules = {}
    for folder, prefix in ((ROOT / "lora_ft", ""), (ROOT / "export", "lora_ft.")):
        for path in folder.rglob("*.py"):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            modules[prefix + ".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in modules.items() if not name.startswith("lora_ft.export.export")}


MODULES = source_files()


def imports_of(path: Path) -> set[str]:
    """Return the modules of the project that a file imports, including imports in functions and for types."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= {name if name in MODULES else node.module or "" for name in names}
    return {name for name in imported if name.split(".")[0] in ("lora_ft", "export", "benchmarks", "tests")}


def package_of(module: str) -> str:
    """Return the package of `ORDER` that a module belongs to; modules at the top of `lora_ft` are verbs."""
    package = module.split(".")[1]
    return package if package in ORDER else "verbs"


def forbidden_imports(module: str) -> list[str]:
    """Return the imports of a module that the order does not allow."""
    package = package_of(module)
    wrong = []
    for target in sorted(imports_of(MODULES[module]) - {"lora_ft"}):
        if target.split(".")[0] != "lora_ft":
            wrong.append(target)
            continue
        imported = package_of(target)
        if package == imported == "verbs":
            wrong += [target] * (module != target)
        elif ORDER.index(imported) > ORDER.index(package):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("module", sorted(set(MODULES) - FRONT))
def test_a_module_imports_only_from_its_package_and_those_below(module: str) -> None:
    assert forbidden_imports(module) == []


def test_every_package_is_in_the_order() -> None:
    packages = {path.parent.name for path in (ROOT / "lora_ft").glob("*/__init__.py")} | {"export"}
    assert packages == set(ORDER) - {"verbs"}


def test_the_table_in_contributing_has_the_order() -> None:
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    packages = [line.split("`")[1].rstrip("/").removeprefix("lora_ft/") for line in lines if line.startswith("| `")]
    assert [name.replace("*.py", "verbs") for name in packages] == list(ORDER)

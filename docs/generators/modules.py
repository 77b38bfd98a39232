"""Count the modules of each package and the imports between packages, and draw them as a matrix."""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.test_layers import ORDER

ROOT = Path(__file__).parents[2]
# Package, modules, imports from other packages, imports of other packages, imports inside: counted in the last commit
# before the tree was moved.
BEFORE = (
    ("lora_ft/", 79, 251, 212, 292),
    ("lora_ft/chats/", 31, 6, 22, 81),
    ("lora_ft/formats/", 5, 7, 8, 3),
    ("lora_ft/metrics/", 15, 18, 17, 21),
    ("lora_ft/packs/", 23, 15, 90, 49),
    ("lora_ft/cli/", 18, 9, 97, 50),
    ("export/", 35, 270, 33, 104),
    ("export/layouts/", 4, 6, 19, 2),
    ("export/runtime/", 19, 150, 17, 32),
    ("export/runtime/decoding/", 8, 1, 16, 12),
    ("benchmarks/", 40, 11, 213, 75),
)
_CELL, _LEFT, _TOP = 34, 112, 96


@dataclass(frozen=True)
class Imports:
    """The modules of each package, and the imports between them.

    Attributes:
        modules: Number of modules by package.
        pairs: Number of imports by (importing package, imported package).
    """

    modules: Counter[str]
    pairs: Counter[tuple[str, str]]

    def incoming(self, package: str) -> int:
        """Return how often other packages import from a package."""
        return sum(count for (importer, imported), count in self.pairs.items() if imported == package != importer)

    def outgoing(self, package: str) -> int:
        """Return how often a package imports from others."""
        return sum(count for (importer, imported), count in self.pairs.items() if importer == package != imported)


def count_imports() -> Imports:
    """Return the imports of all installed modules; a package and its `__init__.py` count as one module."""
    files: dict[str, Path] = {}
    for folder, prefix in ((ROOT / "lora_ft", ""), (ROOT / "export", "lora_ft.")):
        for path in sorted(folder.rglob("*.py")):
            relative = path.relative_to(ROOT)
            if relative.parts[:2] == ("lora_ft", "export"):
                continue  # a link to the folder export/
            parts = relative.with_suffix("").parts
            files[prefix + ".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    modules = Counter(_package(name) for name in files)
    pairs = Counter[tuple[str, str]]()
    for name, path in files.items():
        for module in _imported(path, files):
            pairs[_package(name), _package(module)] += 1
    return Imports(modules, pairs)


def _imported(path: Path, files: dict[str, Path]) -> set[str]:
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {full if (full := f"{node.module}.{alias.name}") in files else node.module for alias in node.names}
    return names & files.keys()


def _package(module: str) -> str:
    """Return the package of a module; `python -m lora_ft` belongs to the command line, top-level modules are verbs."""
    first = module.split(".")[1] if "." in module else ""
    if first == "__main__":
        return "cli"
    return first if first in ORDER else "verbs"


def tables(imports: Imports) -> str:
    """Return the tables of before and after, in Markdown."""
    head = ["| package | modules | imported by others | imports of others | imports inside |", "|---|--:|--:|--:|--:|"]
    before = [f"| `{name}` | {modules} | {into} | {out} | {inside} |" for name, modules, into, out, inside in BEFORE]
    after = [
        f"| `{package}` | {imports.modules[package]} | {imports.incoming(package)} | {imports.outgoing(package)} | "
        f"{imports.pairs[package, package]} |"
        for package in ORDER
    ]
    note = "The imports inside `verbs` are those of `lora_ft/__init__.py`, which imports each verb when it is used."
    return "\n".join(["Before the move:", "", *head, *before, "", "Today:", "", *head, *after, "", note])


def drawing(imports: Imports) -> str:
    """Return the matrix of imports as SVG: a row for each importing package, a column for each imported one."""
    side = len(ORDER) * _CELL
    width, height = _LEFT + side + 12, _TOP + side + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img" '
        'aria-label="Imports between packages: every import goes to a lower package">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for row, package in enumerate(ORDER):
        y = _TOP + row * _CELL
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 22}" text-anchor="end" fill="#222">{package}</text>')
        x = _LEFT + row * _CELL
        parts.append(f'<text transform="translate({x + 21} {_TOP - 8}) rotate(-60)" fill="#222">{package}</text>')
        for column, imported in enumerate(ORDER):
            parts.append(_cell(_LEFT + column * _CELL, y, imports.pairs[package, imported], row, column))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _cell(x: int, y: int, count: int, row: int, column: int) -> str:
    shade = "#f4f4f6" if row == column else "#fff"
    if count and row != column:
        shade = "#cfe0ff" if column < row else "#ffb3a0"
    box = f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="{shade}" stroke="#d0d0d8"/>'
    text = f'<text x="{x + _CELL / 2:g}" y="{y + 22}" text-anchor="middle" fill="#222">{count}</text>' if count else ""
    return box + text

"""Write the generated pages, pictures and schema: `python -m docs.generators`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from docs.generators import command_line, figures, modules, task_keys

ROOT = Path(__file__).parents[2]
_BEGIN, _END = "<!-- modules (python -m docs.generators) -->", "<!-- end of modules -->"


def _schema() -> str:
    return json.dumps(task_keys.json_schema(), indent=2, ensure_ascii=False) + "\n"


def _architecture() -> str:
    """Return docs/architecture.md with its tables of modules written again."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    head, _, rest = text.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    return f"{head}{_BEGIN}\n{modules.tables(modules.count_imports())}\n{_END}{tail}"


FILES: dict[str, Callable[[], str]] = {
    "docs/reference/task.md": task_keys.page,
    "docs/reference/task.schema.json": _schema,
    "lora_ft/schemas/task.schema.json": _schema,
    "docs/reference/command-line.md": command_line.page,
    "docs/architecture.md": _architecture,
    "docs/images/imports.svg": lambda: modules.drawing(modules.count_imports()),
    "docs/images/row.svg": figures.way_of_a_row,
    "docs/images/quality-speed.svg": figures.quality_and_speed,
}
"""Each generated file, by its path in the repository, and the function that returns its content."""


def main() -> None:
    """Write every generated file."""
    for name, content in FILES.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content(), encoding="utf-8")


if __name__ == "__main__":
    main()

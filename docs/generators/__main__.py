"""Write the generated pages, pictures and schema: `python -m docs.generators`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from docs.generators import command_line, figures, messages, modules, task_keys
from lora_ft.export.precision import markdown_tables

ROOT = Path(__file__).parents[2]


def _schema() -> str:
    return json.dumps(task_keys.json_schema(), indent=2, ensure_ascii=False) + "\n"


def _filled(page: str, name: str, content: Callable[[], str]) -> Callable[[], str]:
    """Return a function that renders a page with new content between two comments."""
    begin, end = f"<!-- {name} (python -m docs.generators) -->", f"<!-- end of {name} -->"

    def fill() -> str:
        head, _, tail = (ROOT / page).read_text(encoding="utf-8").partition(begin)
        return f"{head}{begin}\n{content()}\n{end}{tail.partition(end)[2]}"

    return fill


def _modules() -> str:
    return modules.tables(modules.count_imports())


FILES: dict[str, Callable[[], str]] = {
    "docs/reference/task.md": task_keys.page,
    "docs/reference/task.schema.json": _schema,
    "lora_ft/schemas/task.schema.json": _schema,
    "docs/reference/command-line.md": command_line.page,
    "docs/reference/messages.md": messages.page,
    "docs/architecture.md": _filled("docs/architecture.md", "modules", _modules),
    "docs/guides/precisions.md": _filled("docs/guides/precisions.md", "precisions", markdown_tables),
    "docs/images/imports.svg": lambda: modules.drawing(modules.count_imports()),
    "docs/images/row.svg": figures.row_pipeline,
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

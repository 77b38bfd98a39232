"""Tables in a terminal. They are 80 columns wide if the output is not a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from lora_ft.core.printable import printable
from lora_ft.reports.table import Table


class Console(RichConsole):
    """A rich console that prints text as it is, without markup, emoji codes or escape sequences."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Measure and render a string as it will be shown, so that columns stay aligned."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with unsafe characters shown as their codes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def console() -> Console:
    """Return the console for results."""
    return Console()


def table(*columns: str, title: str = "") -> RichTable:
    """Return an empty table without borders. Columns after the first are aligned to the right."""
    rich_table = RichTable(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        rich_table.add_column(name, justify="left" if i == 0 else "right")
    return rich_table


def render_table(content: Table) -> RichTable:
    """Return a table as the terminal shows it: with its brief headings, and its best cells in bold."""
    brief = content.brief()
    rendered = table(*brief.columns, title=brief.title)
    for column in rendered.columns[1 : brief.words]:
        column.justify = "left"
    for row in brief.rows:
        rendered.add_row(*(Text(printable(cell.text), style="bold" if cell.best else "") for cell in row))
    return rendered


def show_pairs(pairs: Mapping[str, str]) -> None:
    """Print names and values, one pair per line."""
    rich_table = RichTable(box=None, pad_edge=False, show_header=False)
    for name, value in pairs.items():
        rich_table.add_row(name, value)
    console().print(rich_table)


def shorten(name: str, width: int = 18) -> str:
    """Return a name, or its end if it is too long for a cell."""
    return name if len(name) <= width else "…" + name[1 - width :]


def distinct(names: Sequence[str], width: int) -> dict[str, str]:
    """Return a distinct short form of each name, without the parts that all long names share.

    Args:
        names: Names such as those of a grid's runs, `NAME-r-8-seed-1`.
        width: Width of a cell, in characters.
    """
    long = [name for name in dict.fromkeys(names) if len(name) > width]
    split = [name.split("-") for name in long]
    shown = {name: name for name in names}
    if len(long) > 1 and len({len(parts) for parts in split}) == 1:
        shared = [len(set(column)) == 1 for column in zip(*split, strict=True)]
        candidates = [[_without(parts, shared, keys=keys) for parts in split] for keys in (True, False)]
        fitting = (texts for texts in candidates if all(len(text) <= width for text in texts))
        short_names = next(fitting, candidates[-1])
        shown |= dict(zip(long, short_names, strict=True))
    for name in long:
        if len(shown[name]) > width:
            head = (width - 1) // 2
            shown[name] = f"{name[:head]}…{name[head + 1 - width :]}"
    counts = Counter(shown.values())
    for number, name in enumerate(long, 1):
        if counts[shown[name]] > 1:
            mark = f"…#{number}"
            shown[name] = name[: width - len(mark)] + mark
    return shown


def _without(parts: Sequence[str], shared: Sequence[bool], *, keys: bool) -> str:
    """Return a name without the parts that all names share. With `keys`, the part before a differing one is kept."""
    text, gap = "", False
    for at, part in enumerate(parts):
        if not shared[at] or (keys and at + 1 < len(parts) and not shared[at + 1]):
            text += ("…" if gap else "-" * bool(text)) + part
            gap = False
        else:
            gap = True
    return text + "…" * gap

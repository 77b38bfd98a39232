"""Groups of commands, listed in `--help` under headings."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class GroupedCommands(TyperGroup):
    """List commands under the heading that `rich_help_panel` names, in the order in which they were added."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Print the help if no command is named. click's no_args_is_help raises it as an error, of one long line."""
        bare = not args and not ctx.resilient_parsing
        return super().parse_args(ctx, ["--help"] if bare else args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write every heading with its commands, their summaries aligned across headings."""
        sections: dict[str, list[tuple[str, str]]] = {}
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        width = max(map(len, commands))
        for name, command in commands.items():
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None)
                heading = panel if isinstance(panel, str) else "Commands"
                summary = command.get_short_help_str(formatter.width)
                sections.setdefault(heading, []).append((name.ljust(width), summary))
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


class RunByDefault(GroupedCommands):
    """Read `bench MODEL` as `bench run MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `run` if the first argument is not a command."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)

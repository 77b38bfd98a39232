"""The commands for task files: write one, list recipes, check a task, estimate its memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_ft.cli.options import GoOnFrom, Json, Overrides, Overwrite, Quiet, TaskArgument, start_overrides
from lora_ft.cli.results import show, show_json
from lora_ft.core.shell_command import shell_command
from lora_ft.core.streams import say
from lora_ft.reports.screen import Screen

if TYPE_CHECKING:
    from lora_ft.init import NewTask


def validate(
    task: TaskArgument,
    set_: Overrides = [],  # noqa: B006  (typer copies it)
    from_: GoOnFrom = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Check a task and its data, and show the training plan.

    All errors of the task and its data are shown. Exit code 2 if there are any.
    """
    from lora_ft.cli.tables import show_task_errors, show_validation
    from lora_ft.tasks.files import InvalidTaskError
    from lora_ft.validate import validate as run_validation

    try:
        with Screen(quiet=quiet) as screen:
            report = run_validation(task, [*set_, *start_overrides(from_)], progress=screen)
    except InvalidTaskError as error:
        if as_json:
            show_json({"errors": error.errors})
        else:
            show_task_errors(error)
        return error.exit_code
    show(report, show_validation, as_json=as_json)
    return 2 if report.errors else 0


def sizes(
    task: TaskArgument = "dialogue-summary",
    set_: Overrides = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Estimate the memory of every FLAN-T5 size for a task.

    The batch size, lengths and LoRA rank are the task's.
    """
    from lora_ft.cli.tables import show_sizes
    from lora_ft.tasks.files import load_task
    from lora_ft.training.memory_estimates import model_sizes as estimate

    loaded = load_task(task, set_)
    show(list(estimate(loaded)), lambda estimates: show_sizes(loaded, estimates), as_json=as_json)


def recipes(
    copy: Annotated[str | None, typer.Option("--copy", metavar="NAME", help="Copy a recipe and its rows.")] = None,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Task file to write. Default: NAME.yaml.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of task files, for editors.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """List the task files that ship with lora-ft, or copy one."""
    from importlib.resources import files

    from lora_ft.core.errors import UsageError
    from lora_ft.tasks.files import recipe_file
    from lora_ft.tasks.files import recipes as list_recipes

    if schema and copy is not None:
        raise UsageError("--schema and --copy are both set", "remove one of the two")
    if copy is not None:
        from lora_ft.init import copy_recipe

        show(copy_recipe(copy, file, overwrite=overwrite), _show_new_task, as_json=as_json)
        return
    if file is not None:
        raise UsageError(f"{file} has no recipe to copy", "add --copy NAME")
    if schema:
        say((files("lora_ft") / "schemas" / "task.schema.json").read_text(encoding="utf-8").rstrip())
        return
    paths = {name: recipe_file(name) for name in list_recipes()}
    show(paths, lambda _: say("\n".join(f"{name}\t{path}" for name, path in paths.items())), as_json=as_json)


def init(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Task file to write. Default: named after the data.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="Rows, a folder with train.*, or a chat export."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="NAME", help="Recipe to copy settings from.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="COLUMN", help="Column that the model writes. Default: guessed.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="Base model. Default: the recipe's, or flan-t5-small.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a commented task file for your rows.

    Columns, prompt, lengths and splits are guessed from the rows, and comments in the file say why. --recipe copies the
    other settings of a recipe; without --data it also copies its rows.
    """
    from lora_ft.init import init as write_task

    with Screen(quiet=quiet) as screen:
        task = write_task(
            file, data=data, recipe=recipe, base=base, target=target, overwrite=overwrite, progress=screen
        )
    show(task, _show_new_task, as_json=as_json)


def _show_new_task(task: NewTask) -> None:
    say(f"{task.file}: {task.kind}")
    for reason in task.reasons:
        say(f"  {reason}")
    say(f"next: {shell_command('validate', task.file)}")

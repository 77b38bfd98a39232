"""The commands around task files: list recipes, check a task, estimate its memory."""

from __future__ import annotations

from lora_ft.cli.options import GoOnFrom, Json, Overrides, Quiet, TaskArgument, start_overrides
from lora_ft.cli.results import show
from lora_ft.core.streams import say
from lora_ft.reports.screen import Screen


def validate(
    task: TaskArgument,
    set_: Overrides = [],  # noqa: B006  (typer copies it)
    from_: GoOnFrom = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Check a task and its data, and show the training plan.

    All errors of the task and its data are shown at once. Exit code 2 if there are any.
    """
    from lora_ft.cli.tables import show_faults, show_validation
    from lora_ft.tasks.files import TaskFaults
    from lora_ft.validate import validate as run_validation

    try:
        with Screen(quiet=quiet) as screen:
            report = run_validation(task, [*set_, *start_overrides(from_)], progress=screen)
    except TaskFaults as error:
        if as_json:
            show({"faults": error.faults}, say, as_json=True)
        else:
            show_faults(error)
        return error.exit_code
    show(report, show_validation, as_json=as_json)
    return 2 if report.faults else 0


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


def recipes(as_json: Json = False) -> None:
    """List the task files that ship with lora-ft."""
    from lora_ft.tasks.files import recipe_file
    from lora_ft.tasks.files import recipes as list_recipes

    paths = {name: recipe_file(name) for name in list_recipes()}
    show(paths, lambda _: say("\n".join(f"{name}\t{path}" for name, path in paths.items())), as_json=as_json)

"""The record of unfinished groups, chosen at the start and kept until the runs of all their tasks are finished."""

from __future__ import annotations

from pathlib import Path

from lora_ft.core.errors import UsageError
from lora_ft.core.files import read_json
from lora_ft.runs.run import is_run, working_folder

# Inside the folder of the runs. No task's name begins with _.
GROUPS_FOLDER, GROUPS_RECORD = "_packs.unfinished", "packs.json"


def require_not_in_group(place: Path) -> None:
    """Raise UsageError if the run at `place` belongs to unfinished groups, since only they can resume its state.

    A member that has left its groups, with a run of its own, may be trained by itself.
    """
    record = place.parent / GROUPS_FOLDER / GROUPS_RECORD
    if not record.is_file() or (is_run(place) and not working_folder(place).exists()):
        return
    names = [name for group in read_json(record)["packs"] for name in group]
    if place.name in names:
        raise UsageError(
            f"the run {place} is unfinished in an adapter group with {len(names)} task{'s' * (len(names) > 1)}: "
            f"{', '.join(names[:8])}{', …' * (len(names) > 8)}",
            f"go on with all of them: lora-ft train TASK … --out {place.parent} --resume",
        )

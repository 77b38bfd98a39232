"""Record of unfinished adapter groups, written at the start and kept until the runs of all their tasks are finished."""

from __future__ import annotations

from pathlib import Path

from lora_ft.core.errors import UsageError
from lora_ft.core.files import read_json
from lora_ft.runs.run import is_run, working_folder

# Names inside the folder of the runs. A task's name cannot begin with _.
GROUPS_FOLDER, GROUPS_RECORD = "_packs.unfinished", "packs.json"


def require_not_in_group(place: Path) -> None:
    """Raise UsageError if the run at `place` belongs to an unfinished group, since only the group can resume it.

    A member that has left its group with a finished run may be trained alone.
    """
    record = place.parent / GROUPS_FOLDER / GROUPS_RECORD
    if not record.is_file() or (is_run(place) and not working_folder(place).exists()):
        return
    names = [name for group in read_json(record)["packs"] for name in group]
    if place.name in names:
        raise UsageError(
            f"the run {place} belongs to an unfinished adapter group of {len(names)} task{'s' * (len(names) > 1)} "
            f"({', '.join(names[:8])}{', …' * (len(names) > 8)})",
            f"continue all of them: lora-ft train TASK … --out {place.parent} --resume",
        )

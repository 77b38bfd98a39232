"""The record of unfinished packs: chosen when they began, kept until the runs of all their tasks are finished."""

from __future__ import annotations

from pathlib import Path

from lora_ft.core.errors import UsageError
from lora_ft.core.files import read_json
from lora_ft.runs.run import is_run, unfinished

# Below the folder of the runs; no task's name begins with _.
WORK, RECORD = "_packs.unfinished", "packs.json"


def require_no_pack(place: Path) -> None:
    """Raise UsageError if the run at `place` belongs to unfinished packs, which alone can go on with its state.

    A member that has left its packs, with a run of its own, may be trained by itself.
    """
    record = place.parent / WORK / RECORD
    if not record.is_file() or (is_run(place) and not unfinished(place).exists()):
        return
    names = [name for pack in read_json(record)["packs"] for name in pack]
    if place.name in names:
        raise UsageError(
            f"the run {place} is unfinished in a pack with {len(names)} task{'s' * (len(names) > 1)}: "
            f"{', '.join(names[:8])}{', …' * (len(names) > 8)}",
            f"go on with all of them: lora-ft train TASK … --out {place.parent} --resume",
        )

"""Snapshots from which an adapter group resumes: the weights and states of all its members."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import read_json, write_text
from lora_ft.training import resume_points

VERSION = 1
_ROWS, _MEMBERS = "rows.safetensors", "members.json"


@dataclass(frozen=True)
class Snapshot:
    """State of an adapter group after a tick.

    Attributes:
        tick: Number of finished ticks.
        rows: Weights, means and squares [adapters, width] of the members that still train.
        members: Entries from `MemberTrainer.export` of these members, by name, in the order of the rows. None for a
            member before its first step.
        closed: Names of finished and paused members. Their runs may not be published yet.
        failed: Reason by name, for members that left without a run.
    """

    tick: int
    rows: dict[str, Tensor]
    members: dict[str, dict[str, Any] | None]
    closed: list[str]
    failed: dict[str, str]


class Snapshots:
    """Snapshots of one group, in a folder.

    Args:
        folder: Folder of the snapshots.
        run: Identifier of the training to which they belong.
    """

    def __init__(self, folder: Path, run: str = "") -> None:
        self.folder, self.run = folder, run

    def write(self, snapshot: Snapshot) -> None:
        """Write a snapshot, and delete older ones once it is complete."""
        path = self.folder / f"checkpoint-{snapshot.tick}"
        path.mkdir(parents=True)
        if snapshot.members:
            save_file(snapshot.rows, path / _ROWS)
        content = {
            "version": VERSION,
            "members": snapshot.members,
            "closed": snapshot.closed,
            "failed": snapshot.failed,
        }
        write_text(path / _MEMBERS, json.dumps(content, default=float))
        resume_points.seal(self.folder, snapshot.tick, keep=1, best=None, run=self.run)

    def latest(self) -> Snapshot | None:
        """Return the newest complete snapshot, or None.

        Raises:
            LoraFtError: The snapshot has another format version.
        """
        path = resume_points.latest(self.folder, self.run) if self.folder.is_dir() else None
        if path is None:
            return None
        content = read_json(path / _MEMBERS)
        if content["version"] != VERSION:
            raise LoraFtError(
                f"{path} has format version {content['version']}, which is not supported (supported: {VERSION})",
                "start over with --overwrite",
            )
        tick = int(path.name.removeprefix("checkpoint-"))
        rows = load_file(path / _ROWS) if content["members"] else {}
        return Snapshot(tick, rows, content["members"], content["closed"], content["failed"])

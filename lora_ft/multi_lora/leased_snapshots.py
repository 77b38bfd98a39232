"""Snapshots of an adapter group that may be restarted on another node."""

from __future__ import annotations

import os
import platform
import secrets
from pathlib import Path

from lora_ft.core.errors import LoraFtError
from lora_ft.multi_lora.snapshots import Snapshot, Snapshots
from lora_ft.multi_lora.storage import Storage


class LeasedSnapshots(Snapshots):
    """Snapshots that one attempt to train a group may write until the next attempt takes over.

    A node that lost its connection to the cluster may keep training after the group was restarted on another node.

    Args:
        folder: Folder of the snapshots.
        storage: Storage shared by all attempts.
        group: Number of the group.
        tree: Folder to copy into the storage with each snapshot; None if all nodes share it.
        run: Identifier of the training.
    """

    def __init__(self, folder: Path, storage: Storage, group: int, tree: Path | None = None, run: str = "") -> None:
        super().__init__(folder, run)
        self._storage, self._group, self._tree = storage, group, tree
        self._attempt = f"{platform.node()} {os.getpid()} {secrets.token_hex(8)}"
        storage.put(self._holder, self._attempt)

    @property
    def _holder(self) -> str:
        return f"holder-{self._group}"

    def write(self, snapshot: Snapshot) -> None:
        """See `Snapshots.write`.

        Raises:
            LoraFtError: Another attempt has taken over.
        """
        holder = self._storage.get(self._holder)
        if holder != self._attempt:
            host, _, process = str(holder).partition(" ")
            raise LoraFtError(f"group {self._group} was taken over by process {process.partition(' ')[0]} on {host}")
        super().write(snapshot)
        self.send()

    def send(self) -> None:
        """Copy the files into the storage, unless all nodes share their folder."""
        if self._tree is not None:
            self._storage.send(self._tree, self._group)

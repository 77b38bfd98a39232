"""Store the snapshots of a cluster's groups in a folder that all nodes share, or below a URL of fsspec."""

from __future__ import annotations

import tarfile
from pathlib import Path

import fsspec

from lora_ft.core.errors import UsageError, first_line

_MARK = ".complete"


class Storage:
    """Storage of files by name, in a folder or below a URL.

    Args:
        place: Path of the folder, or URL.

    Raises:
        UsageError: No installed package supports such URLs.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        try:
            self._files, self._root = fsspec.url_to_fs(place)
        except (ValueError, ImportError) as error:
            raise UsageError(
                f"the storage {place} is not supported ({first_line(error)})",
                "install the fsspec package of its protocol, e.g. s3fs for s3://bucket/folder",
            ) from error

    def put(self, name: str, text: str) -> None:
        """Write a small file."""
        self._files.makedirs(self._root, exist_ok=True)
        self._files.pipe_file(self._path(name), text.encode())

    def get(self, name: str) -> str | None:
        """Return the content of a small file, or None if it does not exist."""
        self._files.invalidate_cache()
        try:
            return self._files.cat_file(self._path(name)).decode()
        except FileNotFoundError:
            return None

    def drop(self, name: str) -> None:
        """Delete a file."""
        self._files.rm_file(self._path(name))

    def clear(self) -> None:
        """Delete everything."""
        if self._files.exists(self._root):
            self._files.rm(self._root, recursive=True)

    def send(self, folder: Path, group: int) -> None:
        """Store a copy of a group's folder, then delete older copies.

        The copy is an archive with a mark, since an object store has no renames.
        """
        number = (self._newest(group) or 0) + 1
        name = self._archive(group, number)
        self._files.makedirs(self._root, exist_ok=True)
        with (
            self._files.open(self._path(name), "wb") as file,
            tarfile.open(fileobj=file, mode="w|") as archive,
        ):
            archive.add(folder, ".")
        self.put(name + _MARK, "")
        for stored in self._names(group):
            if not stored.startswith(name):
                self.drop(stored)

    def fetch(self, group: int, folder: Path) -> bool:
        """Copy an adapter group's newest files into a folder. Return False if there are none."""
        number = self._newest(group)
        if number is None:
            return False
        with (
            self._files.open(self._path(self._archive(group, number)), "rb") as file,
            tarfile.open(fileobj=file, mode="r|") as archive,
        ):
            archive.extractall(folder, filter="data")
        return True

    def _newest(self, group: int) -> int | None:
        complete = [name.removesuffix(_MARK) for name in self._names(group) if name.endswith(_MARK)]
        return max((int(name.split("-")[2].removesuffix(".tar")) for name in complete), default=None)

    def _names(self, group: int) -> list[str]:
        self._files.invalidate_cache()
        paths = self._files.glob(self._path(f"pack-{group}-*"))
        return [str(path).rpartition("/")[2] for path in paths]

    def _archive(self, group: int, number: int) -> str:
        return f"pack-{group}-{number:06}.tar"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

"""Contents of files: decompressed by content, bounded, and refused by name if unreadable."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.formats import content
from lora_ft.data.formats.content import content_of
from lora_ft.data.readers import read_rows

TEXT = b'{"a": 1}\n{"a": 2}\n'


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
    ".zip": lambda data: zipped({"inside/rows.jsonl": data, "__MACOSX/._rows.jsonl": b"x", "inside/.DS_Store": b""}),
}


@pytest.mark.parametrize("ending", list(COMPRESS))
def test_compressed_files_are_read_under_any_name(tmp_path: Path, ending: str) -> None:
    for name in (f"rows.jsonl{ending}", f"ROWS.JSONL{ending.upper()}", "rows.jsonl"):
        (tmp_path / name).write_bytes(COMPRESS[ending](TEXT))
        assert [row for _, row in read_rows(tmp_path, name, "data.train")] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("ending", list(COMPRESS))
def test_a_compressed_file_that_was_cut_off_is_refused(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"rows.jsonl{ending}"
    data = COMPRESS[ending](TEXT + os.urandom(3000).hex().encode())
    for length in (12, len(data) // 2, len(data) - 3):
        file.write_bytes(data[:length])
        with pytest.raises(LoraFtError, match=r"rows\.jsonl"):
            content_of(file)


@pytest.mark.parametrize("ending", list(COMPRESS))
def test_content_beyond_memory_is_refused(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "allowed_memory", lambda: 8 << 20)
    (tmp_path / f"bomb.jsonl{ending}").write_bytes(COMPRESS[ending](b" " * (5 << 20)))
    with pytest.raises(UsageError, match="has more than"):
        content_of(tmp_path / f"bomb.jsonl{ending}")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("rows.jsonl.gz", TEXT, "is not compressed by gz"),
        ("rows.zip", zipped({"a.csv": b"", "b.csv": b""}), "is a zip of 2 files"),
        ("table.csv", zipped({"xl/workbook.xml": b"", "[Content_Types].xml": b""}), "is a spreadsheet, not text"),
        ("table.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "is a spreadsheet, not text"),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS"),
    ],
)
def test_damaged_or_missing_content_is_refused(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(LoraFtError, match=words):
        content_of(tmp_path / name)


def test_a_zip_entry_without_a_name_is_refused_in_our_words(tmp_path: Path) -> None:
    named = zipped({"rows.jsonl": TEXT})
    (tmp_path / "rows.zip").write_bytes(named.replace(b"rows.jsonl", b"\x00ows.jsonl"))  # names end at a zero
    with pytest.raises(UsageError, match=r"rows\.zip"):
        read_rows(tmp_path, "rows.zip", "data.train")


@pytest.mark.parametrize("name", ["fifo.jsonl", "folder.jsonl", "/dev/zero", "~nosuchuser/rows.jsonl", "x" * 300])
def test_special_file_is_refused_without_waiting(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"data\.train: .*(not a file|not a valid path)"):
        read_rows(tmp_path, name, "data.train")


def test_globs_take_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").mkdir()
    (tmp_path / "c.jsonl").write_bytes(TEXT)
    assert len(read_rows(tmp_path, "*.jsonl", "data.train")) == 2

"""A bundle that differs from the published one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import BundleError, LoraFtError, UsageError
from lora_ft.core.files import sha256
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.manifest import (
    DEVICE_STEP,
    FILES,
    LAYOUT_RECORD,
    SBOM,
    describe_files,
    is_bundle,
    read_manifest,
)

CHECKS: list[Callable[[Path], object]] = [read_manifest, Generator.load]
both = pytest.mark.parametrize("check", CHECKS, ids=["read_manifest", "Generator.load"])


def change_manifest(bundle: Path, **changes: Any) -> None:
    path = bundle / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def refused(check: Callable[[Path], object], bundle: Path, kind: type[LoraFtError], *words: str) -> None:
    """Check that reading and loading raise the right error with `words` in its message."""
    with pytest.raises(LoraFtError) as caught:
        check(bundle)
    assert isinstance(caught.value, BundleError) and caught.value.exit_code == kind.exit_code
    for word in words:
        assert word in caught.value.message
    assert caught.value.remedy or kind is UsageError


def test_a_complete_bundle_is_read(bundle: Path) -> None:
    assert is_bundle(bundle)
    manifest = read_manifest(bundle)
    assert manifest == json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"] == describe_files(bundle)
    assert set(manifest["files"]) == {*FILES, DEVICE_STEP, SBOM}


def test_files_are_described_by_hash_and_size(bundle: Path) -> None:
    described = describe_files(bundle)
    for name in FILES:
        assert described[name] == {"sha256": sha256(bundle / name), "bytes": len((bundle / name).read_bytes())}


@both
@pytest.mark.parametrize("name", FILES)
def test_a_tampered_file_is_refused(bundle: Path, name: str, check: Callable[[Path], object]) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    refused(check, bundle, LoraFtError, name, "not the file that was published")


@both
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(bundle: Path, name: str, check: Callable[[Path], object]) -> None:
    (bundle / name).unlink()
    refused(check, bundle, LoraFtError, name, "lacks")


@both
@pytest.mark.parametrize("size", [0, -1])
def test_a_truncated_file_is_refused(bundle: Path, size: int, check: Callable[[Path], object]) -> None:
    path = bundle / "decoder.onnx"
    path.write_bytes(path.read_bytes()[:size])
    refused(check, bundle, LoraFtError, "decoder.onnx")


@both
def test_a_file_that_grew_is_refused(bundle: Path, check: Callable[[Path], object]) -> None:
    with (bundle / "encoder.onnx").open("ab") as file:
        file.write(b"\0")
    refused(check, bundle, LoraFtError, "encoder.onnx")


@both
@pytest.mark.parametrize("size", [0, 1, 100, -3])
def test_a_truncated_manifest_is_refused(bundle: Path, size: int, check: Callable[[Path], object]) -> None:
    path = bundle / "manifest.json"
    path.write_bytes(path.read_bytes()[:size])
    refused(check, bundle, LoraFtError, "manifest.json", "damaged")


@both
@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b"{}", b"\xff\xfe\x00", b'{"format": "lora-ft bundle"}'])
def test_a_changed_manifest_is_refused(bundle: Path, content: bytes, check: Callable[[Path], object]) -> None:
    (bundle / "manifest.json").write_bytes(content)
    refused(check, bundle, LoraFtError, "manifest.json", "damaged")


@both
@pytest.mark.parametrize("key", ["format", "version", "files"])
def test_a_missing_key_is_refused_by_name(bundle: Path, key: str, check: Callable[[Path], object]) -> None:
    change_manifest(bundle, **{key: None})
    refused(check, bundle, LoraFtError, "manifest.json", key)


@both
@pytest.mark.parametrize("version", [0, 1, 2, 3, 6, "5", 2.5])
def test_an_unknown_version_is_refused(bundle: Path, version: object, check: Callable[[Path], object]) -> None:
    change_manifest(bundle, version=version)
    refused(check, bundle, UsageError, "manifest.json", f"version {version!r}")
    with pytest.raises(UsageError) as caught:
        check(bundle)
    assert caught.value.remedy.startswith("update lora-ft" if version == 6 else "export the bundle again")


@both
def test_a_bundle_of_version_4_is_refused_by_its_version(bundle: Path, check: Callable[[Path], object]) -> None:
    """Its graphs have other names, but what helps is a new export, not a copy of missing files."""
    for new, old in {"log_softmax": "normal", "top_k": "best", "reorder_cache": "select"}.items():
        (bundle / f"{new}.onnx").rename(bundle / f"{old}.onnx")
    change_manifest(bundle, version=4)
    with pytest.raises(UsageError, match="version 4, supported: 'lora-ft bundle' version 5") as caught:
        check(bundle)
    assert caught.value.remedy == "export the bundle again"


@both
def test_an_unknown_format_is_refused(bundle: Path, check: Callable[[Path], object]) -> None:
    change_manifest(bundle, format="another bundle")
    refused(check, bundle, UsageError, "manifest.json", "'another bundle'")


@both
@pytest.mark.parametrize("name", FILES)
def test_a_manifest_without_a_file_is_refused(bundle: Path, name: str, check: Callable[[Path], object]) -> None:
    files = describe_files(bundle)
    del files[name]
    change_manifest(bundle, files=files)
    refused(check, bundle, LoraFtError, "manifest.json", name)


@both
@pytest.mark.parametrize("key", ["sha256", "bytes"])
def test_both_hash_and_size_must_agree(bundle: Path, key: str, check: Callable[[Path], object]) -> None:
    files = describe_files(bundle)
    del files["prompt.json"][key]
    change_manifest(bundle, files=files)
    refused(check, bundle, LoraFtError, "prompt.json")


@both
def test_a_folder_without_a_manifest_is_refused(tmp_path: Path, check: Callable[[Path], object]) -> None:
    assert not is_bundle(tmp_path)
    for folder in (tmp_path, tmp_path / "none"):
        refused(check, folder, UsageError, str(folder), "manifest.json")


@both
def test_a_layout_and_half_a_copy_are_named_as_such(bundle: Path, check: Callable[[Path], object]) -> None:
    (bundle / "manifest.json").unlink()
    refused(check, bundle, UsageError, "is a bundle without its manifest.json")
    (bundle / LAYOUT_RECORD).write_text("{}")
    refused(check, bundle, UsageError, "is a layout for other programs")


def test_extra_files_are_ignored(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    assert Generator.load(bundle, threads=1).manifest == read_manifest(bundle)

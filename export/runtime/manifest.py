"""manifest.json: the content of a bundle, its origin, and the size and hash of every file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ft.core.errors import BundleError, LoraFtError, UsageError, raised_as
from lora_ft.core.files import sha256
from lora_ft.core.json_limits import parse_json
from lora_ft.export.runtime.protobuf import fields

NAME = "manifest.json"
LAYOUT_RECORD = "lora-ft.json"  # record of an export in a layout for other programs
FORMAT = "lora-ft bundle"
VERSION = 5
WEIGHTS = "weights.bin"  # the one file of external data that the graphs share
SBOM = "sbom.cdx.json"  # bill of materials; older bundles lack it
PHRASES = "phrases.npy"  # phrases of training answers, only if the export asked for them
DRAFTS = "drafts"  # key of the manifest that describes them
PROBE = "probe.json"  # PyTorch's answers, to repeat the verification
GRAPHS = (
    "encoder.onnx",
    "step.onnx",
    "decoder.onnx",
    "draft.onnx",
    "log_softmax.onnx",
    "top_k.onnx",
    "reorder_cache.onnx",
)
LABELS = "labels.onnx"  # the step of a task with labels; bundles of other tasks lack it
DEVICE_STEP = "device_step.onnx"  # the step of `DeviceLoop`; bundles that GPUs do not run lack it
ADAPTED = "bank."  # prefix of the graphs that take adapters
ADAPTED_GRAPHS = tuple(f"{ADAPTED}{name}.onnx" for name in ("encoder", "step", "decoder"))
BANK = "bank.json"  # description of a bank's adapter slots
FOLD = "fold.safetensors"  # factors folded into the bank's weights and into each adapter
BANK_FILES = (*ADAPTED_GRAPHS, BANK, FOLD)  # files of a bank besides its adapters
ADAPTERS = "adapters"  # folder of the adapters' files, and their key in the manifest
FILES = (*GRAPHS, WEIGHTS, PROBE, "tokenizer.json", "config.json", "generation_config.json", "prompt.json")
_OPTIONAL = (LABELS, DEVICE_STEP, SBOM, PHRASES)

_METADATA_PROPS = 14  # the field of onnx.proto's ModelProto
_NAME, _DIGEST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"), re.compile(r"[0-9a-f]{64}")


def is_bundle(folder: Path) -> bool:
    """Return whether a folder has the manifest of a bundle."""
    return (folder / NAME).is_file()


def is_export(folder: Path) -> bool:
    """Return whether a folder has files of a bundle, complete or not, or of another layout."""
    return any((folder / name).is_file() for name in (NAME, LAYOUT_RECORD, *GRAPHS))


def not_a_bundle(folder: Path) -> UsageError:
    """Return the error about a folder without the manifest of a bundle."""
    if (folder / LAYOUT_RECORD).is_file():
        return UsageError(f"{folder} is a layout for other programs, not a bundle", "export it without --layout")
    if is_export(folder):
        return UsageError(f"{folder} is a bundle without its {NAME}", "copy or export it again")
    return UsageError(f"{folder} is not a bundle: it has no {NAME}", "create one with `lora-ft export`")


def is_bank(folder: Path) -> bool:
    """Return whether a folder has the manifest of a bank."""
    return is_bundle(folder) and (folder / BANK).is_file()


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest's entries for all files of a bundle except its adapters."""
    bank = BANK_FILES if (folder / BANK).is_file() else ()
    optional = [name for name in _OPTIONAL if (folder / name).is_file()]
    return {name: describe(folder / name) for name in (*FILES, *bank, *optional)}


def adapter_file(name: str, digest: str) -> str:
    """Return the path of an adapter in a bundle. It includes the hash, so that no published file is ever overwritten.

    Raises:
        UsageError: The name is not a valid file name on every system.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"the adapter name {name!r} is invalid", "use up to 64 letters, digits, dots, - and _")
    return f"{ADAPTERS}/{name}.{digest[:16]}.safetensors"


def describe(file: Path) -> dict[str, Any]:
    """Return a file's SHA-256 and size in bytes."""
    return {"sha256": sha256(file), "bytes": file.stat().st_size}


def adapter_files(manifest: Mapping[str, Any]) -> list[str]:
    """Return the paths of all adapters that a manifest names."""
    return [adapter_file(name, entry["sha256"]) for name, entry in manifest.get(ADAPTERS, {}).items()]


@raised_as(BundleError)
def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle, after checking the size and hash of every file.

    Raises:
        UsageError: The folder is not a bundle, or its format version is not supported.
        LoraFtError: The manifest is damaged, or a file is missing or differs from the published one.
    """
    manifest = _read(folder)
    path, files, adapters = folder / NAME, manifest["files"], manifest.get(ADAPTERS)
    expected = (*FILES, *(() if adapters is None else BANK_FILES), *(name for name in _OPTIONAL if name in files))
    for name in sorted(files.keys() - set(expected)):
        raise LoraFtError(f"{path} names {name!r}, which is not a file of a bundle", "export the bundle again")
    for name in expected:
        _check(folder, name, files.get(name))
    for name in expected:
        if name.endswith(".onnx"):
            _check_references(folder / name)
    for name, entry in _entries(path, adapters):
        _check(folder, adapter_file(name, entry["sha256"]), entry)
    return manifest


@raised_as(BundleError)
def read_adapters(folder: Path, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a bank whose adapters may have changed since `earlier`.

    Only the files of new adapters are hashed, so a large bank is read again in milliseconds.

    Raises:
        UsageError, LoraFtError: See `read_manifest`; or other files than adapters have changed.
    """
    manifest = _read(folder)
    if {**manifest, ADAPTERS: None} != {**earlier, ADAPTERS: None}:
        raise UsageError(f"{folder} is another bank than the one that was loaded", "load it again")
    before = earlier.get(ADAPTERS) or {}
    for name, entry in _entries(folder / NAME, manifest.get(ADAPTERS)):
        if before.get(name, {}).get("sha256") != entry["sha256"]:
            _check(folder, adapter_file(name, entry["sha256"]), entry)
    return manifest


def _read(folder: Path) -> dict[str, Any]:
    """Return a manifest of a known format."""
    path = folder / NAME
    if not path.is_file():
        raise not_a_bundle(folder)
    try:
        manifest = parse_json(path.read_bytes(), path)
        kind, version, manifest["files"] = manifest["format"], manifest["version"], dict(manifest["files"])
    except LoraFtError as error:
        reason = error.message.removeprefix(f"{path} ")
        raise LoraFtError(f"{path} is damaged ({reason})", "export the bundle again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise LoraFtError(f"{path} is damaged ({type(error).__name__}: {error})", "export the bundle again") from error
    if kind != FORMAT or version != VERSION:
        is_newer = isinstance(version, int) and version > VERSION
        raise UsageError(
            f"{path}: the format is not supported (got {kind!r} version {version!r}, supported: {FORMAT!r} version "
            f"{VERSION})",
            "update lora-ft, or export the bundle again with this version" if is_newer else "export the bundle again",
        )
    return dict(manifest)


def _entries(path: Path, adapters: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, entry) of each adapter that a manifest names."""
    if adapters is None:
        return []
    damaged = not isinstance(adapters, dict) or any(
        not _NAME.fullmatch(name) or not isinstance(entry, dict) or not _DIGEST.fullmatch(str(entry.get("sha256")))
        for name, entry in adapters.items()
    )
    if damaged:
        raise LoraFtError(f"{path} has a malformed entry `adapters`", "export the bundle again")
    return list(adapters.items())


def _check(folder: Path, name: str, expected: Any) -> None:
    file = folder / name
    if not isinstance(expected, dict):
        raise LoraFtError(f"{folder / NAME} has no entry for {name}", "export the bundle again")
    if not file.is_file():
        raise LoraFtError(f"the bundle {folder} lacks {name}", "copy or export it again")
    if file.stat().st_size != expected.get("bytes") or sha256(file) != expected.get("sha256"):
        raise LoraFtError(
            f"{file} is not the file that was published (size or SHA-256 differs from {NAME})",
            "copy or export it again",
        )


def _check_references(graph: Path) -> None:
    """Raise LoraFtError if a graph refers to external data outside the bundle's own weight file.

    Each reference in a graph is an entry with the key `location` (onnx.proto, StringStringEntryProto). A graph without
    weights is small, so all of it is searched except its metadata, which are texts such as the name of a task.
    """
    try:
        parts = [content for number, content in fields(graph.read_bytes()) if number != _METADATA_PROPS]
    except ValueError as error:
        raise LoraFtError(f"{graph} is not a graph ({error})", "do not use it; export the bundle again") from error
    ours = b"\n\x08location\x12" + bytes([len(WEIGHTS)]) + WEIGHTS.encode()
    if any(content.count(b"location") != content.count(ours) for content in parts):
        raise LoraFtError(f"{graph} refers to data outside {WEIGHTS}", "do not use it; export the bundle again")

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
FORMAT = "lora-ft bundle"
VERSION = 4
WEIGHTS = "weights.bin"  # the one file of external data that the graphs share
SBOM = "sbom.cdx.json"  # bill of materials; older bundles lack it
PROBE = "probe.json"  # PyTorch's answers, to repeat the verification
GRAPHS = ("encoder.onnx", "step.onnx", "decoder.onnx", "normal.onnx", "best.onnx", "select.onnx")
ADAPTED = "bank."  # prefix of the graphs that take adapters
ADAPTED_GRAPHS = tuple(f"{ADAPTED}{name}.onnx" for name in ("encoder", "step", "decoder"))
BANK = "bank.json"  # adapter slots of a bank
FOLD = "fold.safetensors"  # factors folded into its weights, and to fold into its adapters
BANK_FILES = (*ADAPTED_GRAPHS, BANK, FOLD)  # files of a bank besides its adapters
ADAPTERS = "adapters"  # folder of the adapters' files, and key of their entries in the manifest
FILES = (*GRAPHS, WEIGHTS, PROBE, "tokenizer.json", "config.json", "generation_config.json", "prompt.json")

_METADATA_PROPS = 14  # the field of onnx.proto's ModelProto
_NAME, _DIGEST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"), re.compile(r"[0-9a-f]{64}")


def is_bundle(folder: Path) -> bool:
    """Return whether a folder has the manifest of a bundle."""
    return (folder / NAME).is_file()


def is_bank(folder: Path) -> bool:
    """Return whether a folder has the manifest of a bank."""
    return is_bundle(folder) and (folder / BANK).is_file()


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest's entries for all files of a bundle, without its adapters."""
    bank = BANK_FILES if (folder / BANK).is_file() else ()
    bill = (SBOM,) if (folder / SBOM).is_file() else ()
    return {name: describe(folder / name) for name in (*FILES, *bank, *bill)}


def adapter_file(name: str, digest: str) -> str:
    """Return the path of an adapter in a bundle; other content is another file, so that none is ever overwritten.

    Raises:
        UsageError: The name is not a valid file name on every system.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for an adapter", "use up to 64 letters, digits, dots, - and _")
    return f"{ADAPTERS}/{name}.{digest[:16]}.safetensors"


def describe(file: Path) -> dict[str, Any]:
    """Return the SHA-256 and the size in bytes."""
    return {"sha256": sha256(file), "bytes": file.stat().st_size}


def adapter_files(manifest: Mapping[str, Any]) -> list[str]:
    """Return the paths of all adapters that a manifest names."""
    return [adapter_file(name, entry["sha256"]) for name, entry in manifest.get(ADAPTERS, {}).items()]


@raised_as(BundleError)
def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle, after checking the size and hash of every file.

    Raises:
        UsageError: The folder is not a bundle, or of an unknown format version.
        LoraFtError: The manifest is damaged, or a file is missing or differs from the published one.
    """
    path = folder / NAME
    if not path.is_file():
        raise UsageError(f"{folder} is not a bundle: it has no {NAME}", "make one with `lora-ft export`")
    try:
        manifest = parse_json(path.read_bytes(), path)
        kind, version, files = manifest["format"], manifest["version"], dict(manifest["files"])
    except LoraFtError as error:
        said = error.message.removeprefix(f"{path} ")
        raise LoraFtError(f"{path} is damaged ({said})", "export the bundle again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise LoraFtError(f"{path} is damaged ({type(error).__name__}: {error})", "export the bundle again") from error
    if kind != FORMAT or version != VERSION:
        raise UsageError(f"{path} is of format {kind!r} version {version!r}; this is for {FORMAT!r} version {VERSION}")
    adapters = manifest.get(ADAPTERS)
    known = (*FILES, *(() if adapters is None else BANK_FILES), *((SBOM,) if SBOM in files else ()))
    for name in sorted(files.keys() - set(known)):
        raise LoraFtError(f"{path} names {name!r}, which is no file of a bundle", "export the bundle again")
    for name in known:
        _check(folder, name, files.get(name))
    for name in known:
        if name.endswith(".onnx"):
            _check_references(folder / name)
    for name, entry in _entries(path, adapters):
        _check(folder, adapter_file(name, entry["sha256"]), entry)
    return manifest


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
        raise LoraFtError(f"{folder / NAME} says nothing about {name}", "export the bundle again")
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
    weights is small, so all of it is searched, except its metadata: texts such as the name of a task, which are no
    references.
    """
    try:
        parts = [content for number, content in fields(graph.read_bytes()) if number != _METADATA_PROPS]
    except ValueError as error:
        raise LoraFtError(f"{graph} is not a graph ({error})", "do not use it; export the bundle again") from error
    ours = b"\n\x08location\x12" + bytes([len(WEIGHTS)]) + WEIGHTS.encode()
    if any(content.count(b"location") != content.count(ours) for content in parts):
        raise LoraFtError(f"{graph} refers to data outside {WEIGHTS}", "do not use it; export the bundle again")

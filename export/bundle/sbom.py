"""Software bill of materials of every exported model, as a CycloneDX 1.6 document in JSON.

The subject is the model, with license, scores and data sets. The components are the base, the adapter, the packages
used for the export, and the model's files with their hashes. Apart from the timestamp, the same model always has the
same bill, since the serial number is derived from the content. The bundle's manifest, or the layout's record, contains
the hash of the bill.

The bill of a bank covers its base and graphs only, since adapters change later. Their hashes are in the manifest.
"""

from __future__ import annotations

import importlib.metadata
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_ft.export.bundle.provenance import Provenance, Score, bounded, scores_as_exported
from lora_ft.export.runtime.manifest import SBOM, describe

# Hub license ids that match an SPDX id apart from case. CycloneDX accepts any other license as a plain name.
_SPDX = {
    name.lower(): name
    for name in (
        "Apache-2.0",
        "MIT",
        "ISC",
        "MPL-2.0",
        "Unlicense",
        "WTFPL",
        "Zlib",
        "BSL-1.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC0-1.0",
        "CC-BY-3.0",
        "CC-BY-4.0",
        "CC-BY-SA-3.0",
        "CC-BY-SA-4.0",
        "CC-BY-NC-4.0",
        "CC-BY-ND-4.0",
        "CC-BY-NC-SA-4.0",
        "CC-BY-NC-ND-4.0",
        "ODbL-1.0",
        "PDDL-1.0",
    )
}


def write_sbom(folder: Path, family: str, provenance: Provenance, record: Mapping[str, Any]) -> None:
    """Write the bill of materials of a model folder that is complete except for its manifest.

    Args:
        folder: Folder of the model.
        family: Name of the model family.
        provenance: Provenance of the model.
        record: Content of the manifest. Its `created`, `precision`, `versions` and gate are used.
    """
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [_package("lora-ft", importlib.metadata.version("lora-ft"), kind="application")]},
            "component": _model(family, provenance, record),
        },
        "components": [*_parents(provenance), *_packages(record), *_files(folder)],
        "dependencies": [{"ref": "model", "dependsOn": [parent["bom-ref"] for parent in _parents(provenance)]}],
    }
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(document, sort_keys=True))}"
    if "created" in record:
        document["metadata"]["timestamp"] = record["created"]
    (folder / SBOM).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _model(family: str, provenance: Provenance, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the component that the bill describes."""
    parameters: dict[str, Any] = {"architectureFamily": family}
    if provenance.task:
        parameters["task"] = bounded(provenance.task)
    if provenance.data:
        parameters["datasets"] = [{"type": "dataset", "name": bounded(name)} for name in provenance.data]
    card: dict[str, Any] = {"modelParameters": parameters}
    if scores := scores_as_exported(provenance, record):
        card["quantitativeAnalysis"] = {"performanceMetrics": [_metric(score) for score in scores]}
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": bounded(provenance.task or provenance.adapter or provenance.base) or "model",
        "modelCard": card,
    }
    if provenance.license:
        model["licenses"] = [{"license": _license(provenance.license)}]
    if "precision" in record:
        model["properties"] = [{"name": "lora-ft:precision", "value": bounded(record["precision"])}]
    return model


def _license(name: str) -> dict[str, str]:
    spdx = _SPDX.get(name.lower())
    return {"id": spdx} if spdx else {"name": bounded(name)}


def _metric(score: Score) -> dict[str, Any]:
    metric: dict[str, Any] = {
        "type": bounded(score.metric),
        "value": f"{score.mean:.2f}",
        "slice": f"{score.split}, {score.rows} rows",
    }
    if score.low is not None and score.high is not None:
        metric["confidenceInterval"] = {"lowerBound": f"{score.low:.2f}", "upperBound": f"{score.high:.2f}"}
    return metric


def _parents(provenance: Provenance) -> list[dict[str, Any]]:
    """Return the models that this model was created from."""
    names = {"base": provenance.base, "adapter": provenance.adapter}
    return [
        {"type": "machine-learning-model", "bom-ref": role, "name": bounded(name)}
        for role, name in names.items()
        if bounded(name)
    ]


def _packages(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_package(name, version) for name, version in sorted(record.get("versions", {}).items())]


def _package(name: str, version: str, *, kind: str = "library") -> dict[str, Any]:
    package = {"type": kind, "name": name, "version": version}
    # "+" starts a local version ("2.13.0+cpu") and must be escaped in a package URL
    if kind == "application":
        return package
    return package | {"bom-ref": f"package:{name}", "purl": f"pkg:pypi/{name}@{version.replace('+', '%2B')}"}


def _files(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SBOM):
        name = path.relative_to(folder).as_posix()
        digest = describe(path)["sha256"]
        hashes = [{"alg": "SHA-256", "content": digest}]
        yield {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": hashes}

"""Bills of materials: valid CycloneDX 1.6, complete, and the same for the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import sha256
from lora_ft.export.bundle.provenance import Provenance, Score
from lora_ft.export.bundle.sbom import write_sbom
from lora_ft.export.layouts import LAYOUTS
from lora_ft.export.runtime.manifest import LAYOUT_RECORD, NAME, SBOM, read_manifest
from tests.export.oracle import make_bundle

KNOWN = Provenance(
    task="titles",
    base="google/flan-t5-small",
    adapter="titles",
    license="apache-2.0",
    data=("user/rows", "more.jsonl"),
    scores=(Score("rougeL", "test", 200, 41.25, 40.0, 42.5), Score("loss", "validation", 9, 1.5)),
)
RECORD_OF = {"created": "2026-01-02T03:04:05+00:00", "precision": "fp32", "versions": {"torch": "2.13.0+cpu"}}


def problems(document: dict[str, Any]) -> object:
    """Return the violations of CycloneDX's schema, or None."""
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))


def bill_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / SBOM).read_text(encoding="utf-8"))


@pytest.mark.parametrize("layout", ["bundle", *LAYOUTS])
def test_an_exported_model_has_a_valid_bill_of_every_file(checkpoint: Path, tmp_path: Path, layout: str) -> None:
    out = tmp_path / "out"
    make_bundle(checkpoint, out, layout=layout, triton=layout == "single", provenance=KNOWN)
    bill = bill_of(out)
    assert problems(bill) is None
    files = {component["name"]: component["hashes"] for component in bill["components"] if component["type"] == "file"}
    record = NAME if layout == "bundle" else LAYOUT_RECORD
    paths = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files.keys() == paths - {SBOM, record}
    assert all(hashes == [{"alg": "SHA-256", "content": sha256(out / name)}] for name, hashes in files.items())
    assert json.loads((out / record).read_text())["files"][SBOM]["sha256"] == sha256(out / SBOM)


def test_a_bill_names_origin_license_data_scores_and_packages(tmp_path: Path) -> None:
    write_sbom(tmp_path, "T5", KNOWN, RECORD_OF)
    bill = bill_of(tmp_path)
    assert problems(bill) is None
    model = bill["metadata"]["component"]
    assert (model["name"], model["licenses"]) == ("titles", [{"license": {"id": "Apache-2.0"}}])
    assert [component["name"] for component in model["modelCard"]["modelParameters"]["datasets"]] == [
        "user/rows",
        "more.jsonl",
    ]
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] == [
        {
            "type": "rougeL",
            "value": "41.25",
            "slice": "test, 200 rows",
            "confidenceInterval": {"lowerBound": "40.00", "upperBound": "42.50"},
        },
        {"type": "loss", "value": "1.50", "slice": "validation, 9 rows"},
    ]
    parts = {component["bom-ref"]: component for component in bill["components"]}
    assert parts["base"]["name"] == "google/flan-t5-small" and parts["adapter"]["name"] == "titles"
    assert parts["package:torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"


@pytest.mark.parametrize(
    "provenance",
    [
        Provenance(),
        Provenance(task="\x00" * 300, base="\ud800", adapter="\n", license="openrail++", data=("a\tb",)),
        Provenance(license="CC-BY-4.0", base="要約"),
    ],
)
def test_any_provenance_yields_a_valid_bill(tmp_path: Path, provenance: Provenance) -> None:
    write_sbom(tmp_path, "T5", provenance, {})
    assert problems(bill_of(tmp_path)) is None


def test_the_bill_is_reproducible_except_for_the_timestamp(tmp_path: Path) -> None:
    bills = []
    for created in ("2026-01-01T00:00:00+00:00", "2027-01-01T00:00:00+00:00"):
        write_sbom(tmp_path, "T5", KNOWN, RECORD_OF | {"created": created})
        bill = bill_of(tmp_path)
        assert bill["metadata"].pop("timestamp") == created
        bills.append(bill)
    assert bills[0] == bills[1]
    (tmp_path / "another").write_text("file")
    write_sbom(tmp_path, "T5", KNOWN, RECORD_OF)
    assert bill_of(tmp_path)["serialNumber"] != bills[0]["serialNumber"]


def test_the_manifest_has_the_hash_of_the_bill(checkpoint: Path, tmp_path: Path) -> None:
    make_bundle(checkpoint, tmp_path / "out", provenance=KNOWN)
    path = tmp_path / "out" / SBOM
    path.write_text(path.read_text().replace("Apache-2.0", "MIT"))
    with pytest.raises(LoraFtError, match=SBOM):
        read_manifest(tmp_path / "out")


def test_an_older_bundle_without_a_bill_loads(checkpoint: Path, tmp_path: Path) -> None:
    make_bundle(checkpoint, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / NAME).read_text())
    del manifest["files"][SBOM]
    (tmp_path / "out" / NAME).write_text(json.dumps(manifest))
    (tmp_path / "out" / SBOM).unlink()
    assert read_manifest(tmp_path / "out") == manifest

"""Banks of all T5 configs in all precisions are published only if every adapter matches PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.export.bundle.publish import base_hash
from lora_ft.export.parity import compare, divergence
from lora_ft.export.precision import NAMED, parse
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.manifest import ADAPTED_GRAPHS, BANK_FILES, FILES, SBOM
from tests.export.banks import draw_adapter, make_bank, member, merged
from tests.export.family import CONFIGS, save_member
from tests.export.oracle import TEXTS, entries, make_bundle, ragged, references

# transformers 5 takes no two sizes of stack in `generate`
FAMILY = [name for name in CONFIGS if name != "byt5"]
ROUNDING = ["int8", "w8", "int8-w8", "encoder=fp32,decoder=int8,head=fp32,embedding=fp32"]


@pytest.mark.parametrize("name", FAMILY)
def test_every_config_supports_adapters(name: str, tmp_path: Path) -> None:
    base = save_member(tmp_path / "base", name)
    adapters = {
        "one": draw_adapter(base, 1, rank=3),
        "two": draw_adapter(base, 2, rank=2, endings=(".q", ".v", ".wi", ".wi_0")),
    }
    wholes = {key: merged(base, adapter, tmp_path / key) for key, adapter in adapters.items()}
    reports = make_bank(base, [member(key, adapters[key], wholes[key]) for key in adapters], tmp_path / "bank")
    assert all(report.passed for report in reports.values())
    bank = Generator.load(tmp_path / "bank", threads=1)
    names = ["one", None, "two", "one", "two", None]
    answers = bank.generate(TEXTS, adapter=names)
    for key in (None, "one", "two"):
        alone = bank.generate(TEXTS, adapter=key)
        assert [text for text, adapter_name in zip(answers, names, strict=True) if adapter_name == key] == [
            text for text, adapter_name in zip(alone, names, strict=True) if adapter_name == key
        ]
    ids, mask = ragged([[9, 8, 7, 1]] * 3)
    base_logits, first, two = bank.score(ids, mask, np.full((3, 2), 5), adapter=[None, "one", "two"])
    assert min(np.abs(base_logits - first).max(), np.abs(base_logits - two).max(), np.abs(first - two).max()) > 0.1


@pytest.fixture(scope="module")
def adapted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return merged checkpoints of two adapters with the magnitudes of trained adapters."""
    root = tmp_path_factory.mktemp("adapted")
    return {
        name: merged(checkpoint, draw_adapter(checkpoint, seed, size=0.2), root / name)
        for seed, name in enumerate(("one", "two"))
    }


@pytest.mark.parametrize("precision", ROUNDING)
def test_a_rounded_bank_loses_no_more_than_separate_bundles(
    checkpoint: Path, adapted: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    """Allow 50 % and some thousandths of a nat more, since adapters share the bank's scales."""
    members = [
        member(name, draw_adapter(checkpoint, seed, size=0.2), adapted[name]) for seed, name in enumerate(adapted)
    ]
    make_bank(checkpoint, members, tmp_path / "bank", precision=parse(precision))
    bank = Generator.load(tmp_path / "bank", threads=1)
    for name, whole in adapted.items():
        bundle_report = make_bundle(whole, tmp_path / name, precisions=[parse(precision)])
        report = compare(bank, references(whole), adapter=name)
        assert report.divergence < 1.5 * bundle_report.divergence + 0.05
        assert report.divergence < 0.25 * divergence(bank, references(whole), None)
    names = ["one", "two", None, "two", "one", None]
    answers = bank.generate(TEXTS, adapter=names)
    assert answers == bank.generate(TEXTS, adapter=names, batch_size=1)  # a row does not depend on those beside it


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_base_of_a_bank_equals_its_bundle(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    whole = merged(checkpoint, adapter := draw_adapter(checkpoint, 1, size=0.2), tmp_path / "whole")
    make_bank(checkpoint, [member("one", adapter, whole)], tmp_path / "bank", precision=NAMED[precision])
    manifest = json.loads((tmp_path / "bank" / "manifest.json").read_text())
    assert manifest["files"].keys() == {*FILES, *BANK_FILES, SBOM}
    assert entries(tmp_path / "bank") == {*FILES, *BANK_FILES, SBOM, "manifest.json", "adapters"}
    assert manifest["adapters"]["one"]["parity"]["rows"] == len(TEXTS)
    bank = Generator.load(tmp_path / "bank", threads=1)
    if precision == "fp32":
        make_bundle(checkpoint, tmp_path / "plain")
        assert bank.generate(TEXTS) == Generator.load(tmp_path / "plain", threads=1).generate(TEXTS)
    bank.generate(TEXTS)
    assert not {f"{name}.onnx" for name in bank.model._sessions} & set(ADAPTED_GRAPHS)
    bank.model.open_all()


def test_only_adapted_layers_have_adapter_inputs(checkpoint: Path, tmp_path: Path) -> None:
    adapter = draw_adapter(checkpoint, 1, endings=(".q", ".v"))
    make_bank(checkpoint, [member("one", adapter, merged(checkpoint, adapter, tmp_path / "whole"))], tmp_path / "bank")
    content = json.loads((tmp_path / "bank" / "bank.json").read_text())
    cross = [name for name in content["inputs"]["bank.encoder"] if "EncDec" in name]
    assert {name.rsplit(".", 2)[1] for name in cross} == {"v"}
    assert not [name for name in content["values"] if "wi" in name or "wo" in name or ".o." in name]
    assert content["inputs"]["bank.step"] == content["inputs"]["bank.decoder"]
    assert content["base_sha256"] == base_hash(checkpoint)


def test_an_adapter_that_differs_from_pytorch_is_not_published(checkpoint: Path, tmp_path: Path) -> None:
    adapter, unrelated = draw_adapter(checkpoint, 1), draw_adapter(checkpoint, 2)
    wrong = member("one", adapter, merged(checkpoint, unrelated, tmp_path / "whole"))
    with pytest.raises(LoraFtError, match="differ from PyTorch"):
        make_bank(checkpoint, [wrong], tmp_path / "bank")
    with pytest.raises(LoraFtError, match=r"adapter 'one' diverges from PyTorch by .* nats in this bank \(allowed: "):
        make_bank(checkpoint, [wrong], tmp_path / "bank", precision=NAMED["int8"])
    assert entries(tmp_path) == {"whole"}


def test_an_existing_bank_is_not_overwritten_by_default(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "mine").write_text("")
    with pytest.raises(UsageError, match="already exists"):
        make_bank(checkpoint, [], tmp_path / "bank")


def test_a_base_in_shards_has_one_hash(tmp_path: Path) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": f"w{i}" for i in (1, 2)}
    for i, (shard, name) in enumerate(shards.items()):
        save_file({name: np.full(2, i, np.float32)}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, name in shards.items()}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    both = base_hash(tmp_path)
    assert len(both) == 64
    save_file({"w2": np.full(2, 7, np.float32)}, tmp_path / "model-00002-of-00002.safetensors")
    assert base_hash(tmp_path) != both

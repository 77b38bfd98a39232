"""Adapters are added to a bank and removed, and failures leave the bank intact."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import UsageError
from lora_ft.export.bundle import bank as shelf
from lora_ft.export.bundle.assemble import read_model
from lora_ft.export.bundle.bank import BankAdapter, BankLayout, add_adapter, remove_adapter
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.manifest import read_manifest
from tests.export.banks import draw_adapter, make_bank, member, merged
from tests.export.oracle import TEXTS


@pytest.fixture(scope="module")
def member_one(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> BankAdapter:
    adapter = draw_adapter(checkpoint, 1)
    return member("one", adapter, merged(checkpoint, adapter, tmp_path_factory.mktemp("one") / "whole"))


@pytest.fixture(scope="module")
def shared_bank(checkpoint: Path, member_one: BankAdapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "bank"
    make_bank(checkpoint, [member_one], out)
    return out


@pytest.fixture
def bank(shared_bank: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shared_bank, tmp_path / "bank")


@pytest.fixture
def two(checkpoint: Path, tmp_path: Path) -> BankAdapter:
    adapter = draw_adapter(checkpoint, 2, rank=2)
    return member("two", adapter, merged(checkpoint, adapter, tmp_path / "whole"))


def files(bank: Path) -> dict[str, bytes]:
    return {str(path.relative_to(bank)): path.read_bytes() for path in bank.rglob("*") if path.is_file()}


def test_adding_an_adapter_does_not_change_the_base(bank: Path, two: BankAdapter, checkpoint: Path) -> None:
    before = files(bank)
    assert add_adapter(bank, two, *read_model(checkpoint)).passed
    after = files(bank)
    assert {name for name in before if after[name] != before[name]} == {"manifest.json"}
    generator = Generator.load(bank, threads=1)
    assert generator.adapters == ["one", "two"]
    remove_adapter(bank, ["one"])
    assert Generator.load(bank, threads=1).generate(TEXTS, adapter="two") == generator.generate(TEXTS, adapter="two")
    assert sorted(name.split(".")[0] for name in files(bank) if "adapters" in name) == ["adapters/two"]


@pytest.mark.parametrize("where", ["store", "compare", "write_json"])
def test_failed_additions_leave_the_bank_unchanged(
    bank: Path, two: BankAdapter, checkpoint: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("the disk is gone")

    before = files(bank)
    monkeypatch.setattr(shelf, where, fail)
    with pytest.raises(OSError, match="disk is gone"):
        add_adapter(bank, two, *read_model(checkpoint))
    assert files(bank) == before


def test_leftovers_of_a_killed_process_are_deleted_by_the_next_change(bank: Path) -> None:
    (bank / "adapters" / ".123.partial").write_text("half")
    (bank / "adapters" / "lost.0123456789abcdef.safetensors").write_text("half")
    Generator.load(bank)
    remove_adapter(bank, [])
    assert [path.name.split(".")[0] for path in (bank / "adapters").iterdir()] == ["one"]


def test_an_adapter_is_replaced_only_with_overwrite(bank: Path, member_one: BankAdapter, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=r"has an adapter 'one'; pass NAME=RUN with another name, or --overwrite"):
        add_adapter(bank, member_one, *read_model(checkpoint))
    loaded = Generator.load(bank, threads=1)
    assert add_adapter(bank, member_one, *read_model(checkpoint), overwrite=True).passed
    assert loaded.generate(TEXTS, adapter="one") == Generator.load(bank, threads=1).generate(TEXTS, adapter="one")


def test_an_open_bank_still_serves_a_removed_adapter(bank: Path) -> None:
    generator = Generator.load(bank, threads=1)
    expected = generator.generate(TEXTS, adapter="one")
    remove_adapter(bank, ["one"])
    assert generator.generate(TEXTS, adapter="one") == expected
    assert Generator.load(bank).adapters == []


def hold(bank: Path, entered: Any, leave: Any) -> None:
    with shelf.locked(bank) as content:
        entered.set()
        leave.wait(30)
        content["adapters"].clear()
        (bank / "manifest.json").write_text(json.dumps(content))


def test_concurrent_changes_of_a_bank_are_serialized(bank: Path) -> None:
    context = multiprocessing.get_context("fork")
    entered, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(bank, entered, leave))
    process.start()
    assert entered.wait(30)
    leave.set()
    with shelf.locked(bank) as content:
        assert content["adapters"] == {}
    process.join()
    assert read_manifest(bank)["adapters"] == {}


def test_a_layout_survives_its_files(bank: Path, tmp_path: Path, checkpoint: Path) -> None:
    room = BankLayout.read(bank)
    assert (room.fold.columns, room.fold.rows, room.fold.peaks) == ({}, {}, {})
    assert max(room.slots.ranks.values()) == 4
    with pytest.raises(UsageError, match="is not a bank"):
        BankLayout.read(checkpoint)

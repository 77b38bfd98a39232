"""Banks and keys that change while a server runs."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.serving.app import Service
from lora_ft.serving.errors import RequestError
from lora_ft.serving.keys import ApiKeys
from lora_ft.serving.registry import Registry
from lora_ft.serving.reloader import Reloader
from lora_ft.serving.request_log import RequestLog
from tests.lora_ft.serving.fake_engine import FakeEngine


@pytest.fixture
def bank(tmp_path: Path) -> FakeEngine:
    engine = FakeEngine(tmp_path / "bank", adapters={"one": "{text}"})
    (tmp_path / "bank" / "manifest.json").write_text("{}", encoding="utf-8")
    return engine


def service_of(bank: FakeEngine) -> tuple[Service, io.StringIO]:
    log = io.StringIO()
    return Service(Registry({"bank": bank}), keys=ApiKeys(["old"]), log=RequestLog(stream=log)), log


def events(log: io.StringIO) -> list[str]:
    return [json.loads(line)["event"] for line in log.getvalue().splitlines()]


def no_keys() -> ApiKeys:
    return ApiKeys([])


def test_only_a_changed_manifest_is_read_again(bank: FakeEngine, tmp_path: Path) -> None:
    service, log = service_of(bank)
    reloader = Reloader(service, no_keys)
    asyncio.run(reloader.look())
    assert bank.reloads == 0
    bank.set_adapters({"one": "{text}", "two": "{text}"})
    (tmp_path / "bank" / "manifest.json").write_text('{"more": 1}', encoding="utf-8")
    asyncio.run(reloader.look())
    asyncio.run(reloader.look())
    assert bank.reloads == 1
    assert service.registry.find("two").adapter == "two"
    assert events(log) == ["bundle_reloaded"]
    service.keys.require("Bearer old")


def test_a_request_reads_everything_again(bank: FakeEngine) -> None:
    service, _ = service_of(bank)
    reloader = Reloader(service, lambda: ApiKeys(["new"]))
    reloader.request()
    asyncio.run(reloader.look())
    assert bank.reloads == 1
    service.keys.require("Bearer new")
    with pytest.raises(RequestError):
        service.keys.require("Bearer old")


def fail() -> ApiKeys:
    raise UsageError("the file is gone")


@pytest.mark.parametrize("error", [LoraFtError("damaged"), OSError("gone")])
def test_what_cannot_be_read_stays_as_it_was(
    bank: FakeEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def reload() -> list[str]:
        raise error

    service, log = service_of(bank)
    monkeypatch.setattr(bank, "reload", reload)
    reloader = Reloader(service, fail)
    reloader.request()
    asyncio.run(reloader.look())
    assert service.registry.find("one").adapter == "one"
    service.keys.require("Bearer old")
    assert events(log) == ["bundle_not_reloaded", "keys_not_reloaded"]


def test_a_bundle_without_adapters_is_not_watched(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "plain")
    service, _ = service_of(engine)
    readers: list[Callable[[], ApiKeys]] = [no_keys]
    reloader = Reloader(service, readers[0])
    reloader.request()
    asyncio.run(reloader.look())
    assert engine.reloads == 0

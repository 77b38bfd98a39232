"""Adapters that a bank has now."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_ft.serving.bank_watch import BankWatch
from lora_ft.serving.errors import RequestError
from lora_ft.serving.registry import Registry
from lora_ft.serving.request_log import RequestLog
from tests.lora_ft.serving.conftest import Running, serving
from tests.lora_ft.serving.fake_engine import FakeEngine

PROMPT = "say: {text}"


@pytest.fixture
def bank(tmp_path: Path) -> FakeEngine:
    engine = FakeEngine(tmp_path / "bank", adapters={"one": PROMPT})
    publish(engine, "one")
    return engine


@pytest.fixture
def watch(bank: FakeEngine) -> BankWatch:
    return BankWatch(Registry({"bank": bank}), RequestLog(stream=io.StringIO()))  # type: ignore[dict-item]


@pytest.fixture
def server(bank: FakeEngine) -> Iterator[Running]:
    """A server without a reloader, so that only requests can make it look."""
    with serving({"bank": bank}) as running:
        yield running


def publish(bank: FakeEngine, *names: str) -> None:
    """Replace the adapters of a bank, and its manifest."""
    bank.set_adapters(dict.fromkeys(names, PROMPT))
    (bank.generator.folder / "manifest.json").write_text(" ".join(names), encoding="utf-8")


def test_an_adapter_is_found_as_soon_as_the_bank_has_it(bank: FakeEngine, watch: BankWatch) -> None:
    publish(bank, "one", "two")
    assert asyncio.run(watch.find("two")).adapter == "two"


def test_requests_that_look_at_once_read_a_bank_once(bank: FakeEngine, watch: BankWatch) -> None:
    async def ask() -> list[str | None]:
        return [model.adapter for model in await asyncio.gather(*(watch.find("two") for _ in range(5)))]

    publish(bank, "one", "two")
    assert asyncio.run(ask()) == ["two"] * 5
    assert bank.reloads == 1


def test_unknown_models_do_not_read_a_bank_that_is_unchanged(bank: FakeEngine, watch: BankWatch) -> None:
    with pytest.raises(RequestError) as caught:
        asyncio.run(watch.find("two"))
    assert caught.value.status == 404
    assert bank.reloads == 0


def test_an_adapter_that_left_and_returned_is_read_again(
    bank: FakeEngine, watch: BankWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry may still have an adapter that the engine has already dropped."""
    publish(bank, "one", "two")
    bank.set_adapters({})
    monkeypatch.setattr(bank, "reload", lambda: bank.set_adapters({"one": PROMPT, "two": PROMPT}) or bank.adapters)
    asyncio.run(watch.find("one")).require_served()


def test_a_bank_that_could_not_be_read_is_read_again_after_a_while(
    bank: FakeEngine, watch: BankWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another user had written the file of an adapter, and its permissions were corrected then."""
    publish(bank, "one", "two")
    now, errors, reload = [0.0], [PermissionError("two")], bank.reload
    monkeypatch.setattr("lora_ft.serving.bank_watch.time", SimpleNamespace(monotonic=lambda: now[0]))

    def read() -> list[str]:
        if errors:
            raise errors.pop()
        return reload()

    monkeypatch.setattr(bank, "reload", read)
    for seconds, reloads in ((0.0, 0), (1.0, 0), (6.0, 1), (12.0, 1)):
        now[0] = seconds
        asyncio.run(watch.look())
        assert bank.reloads == reloads
    assert asyncio.run(watch.find("two")).adapter == "two"


@pytest.mark.parametrize("body", [{"model": "two"}, {"model": "bank/two"}, {"model": "bank", "adapter": "two"}])
def test_requests_reach_an_adapter_that_was_just_added(bank: FakeEngine, server: Running, body: dict[str, str]) -> None:
    publish(bank, "one", "two")
    row = {"text": "abc", **({"adapter": body["adapter"]} if "adapter" in body else {})}
    response = server.post("/v1/generate", model=body["model"], rows=[row])
    assert response.status_code == 200, response.text


def test_the_list_of_models_has_an_adapter_that_was_just_added(bank: FakeEngine, server: Running) -> None:
    publish(bank, "one", "two")
    assert {model["id"] for model in server.get("/v1/models").json()["data"]} == {"bank", "one", "two"}


def test_the_details_of_a_model_are_those_of_an_adapter_that_was_just_added(bank: FakeEngine, server: Running) -> None:
    publish(bank, "one", "two")
    assert server.get("/v1/models/two").json()["id"] == "two"

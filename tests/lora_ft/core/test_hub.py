"""Check of the Hub: a single request with a short timeout, and an error with an alternative."""

from __future__ import annotations

from collections.abc import Iterator

import huggingface_hub
import pytest
from huggingface_hub import constants

from lora_ft.core.errors import UsageError
from lora_ft.core.hub import TIMEOUT, hub_trouble, require_hub


@pytest.fixture(autouse=True)
def _without_cache() -> Iterator[None]:
    hub_trouble.cache_clear()
    yield
    hub_trouble.cache_clear()


class Session:
    """A stand-in for the Hub's client that records requests."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.requests = error, list[tuple[str, float]]()

    def head(self, url: str, *, timeout: float) -> None:
        self.requests.append((url, timeout))
        if self.error is not None:
            raise self.error


def with_session(monkeypatch: pytest.MonkeyPatch, session: Session) -> Session:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    return session


def test_offline_mode_sends_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    session = with_session(monkeypatch, Session())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_trouble() == "HF_HUB_OFFLINE is set" and not session.requests


def test_unreachable_hub_is_requested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    session = with_session(monkeypatch, Session(ConnectionError("no route")))
    assert hub_trouble() == hub_trouble() == f"{constants.ENDPOINT} does not answer (ConnectionError)"
    assert session.requests == [(constants.ENDPOINT, TIMEOUT)]


def test_reachable_hub_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with_session(monkeypatch, Session())
    assert hub_trouble() is None
    require_hub("the data set x", "y")


def test_error_names_resource_reason_and_alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    with_session(monkeypatch, Session(TimeoutError()))
    with pytest.raises(UsageError) as caught:
        require_hub("the data set x", "a local file")
    assert caught.value.message.startswith("the data set x is on the Hub, but ")
    assert "TimeoutError" in caught.value.message and caught.value.remedy.endswith("use a local file")

"""Whether the hub answers: asked once, answered fast, and said with what else there is."""

from __future__ import annotations

from collections.abc import Iterator

import huggingface_hub
import pytest
from huggingface_hub import constants

from lora_ft.core.errors import UsageError
from lora_ft.core.hub import TIMEOUT, hub_trouble, require_hub


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    hub_trouble.cache_clear()
    yield
    hub_trouble.cache_clear()


class Session:
    """Stands for the hub's client; counts what it is asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked = error, list[tuple[str, float]]()

    def head(self, url: str, *, timeout: float) -> None:
        self.asked.append((url, timeout))
        if self.error is not None:
            raise self.error


def with_session(monkeypatch: pytest.MonkeyPatch, session: Session) -> Session:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    return session


def test_a_hub_that_is_switched_off_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    session = with_session(monkeypatch, Session())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_trouble() == "HF_HUB_OFFLINE is set" and not session.asked


def test_a_hub_that_does_not_answer_is_given_up_on_after_seconds_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    session = with_session(monkeypatch, Session(ConnectionError("no route")))
    assert hub_trouble() == hub_trouble() == f"{constants.ENDPOINT} does not answer (ConnectionError)"
    assert session.asked == [(constants.ENDPOINT, TIMEOUT)]


def test_a_hub_that_answers_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    with_session(monkeypatch, Session())
    assert hub_trouble() is None
    require_hub("the data set x", "y")


def test_what_is_wanted_why_not_and_what_else_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with_session(monkeypatch, Session(TimeoutError()))
    with pytest.raises(UsageError) as caught:
        require_hub("the data set x", "a local file")
    assert caught.value.message.startswith("the data set x is on the hub, and ")
    assert "TimeoutError" in caught.value.message and caught.value.remedy.endswith("use a local file")

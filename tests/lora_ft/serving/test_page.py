"""The page at `/`, in a headless browser."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import httpx
import pytest

from tests.lora_ft.serving.browser import CHROMIUM, opened
from tests.lora_ft.serving.conftest import Running, serving
from tests.lora_ft.serving.fake_engine import FakeEngine

LOOKED_AT = os.environ.get("LORA_FT_SCREENSHOTS")  # a folder, to look at what the tests see


def test_the_page_loads_nothing_from_elsewhere(server: Running) -> None:
    response = httpx.get(server.url)
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "http://" not in response.text
    assert "https://" not in response.text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [400, 1200])
def test_two_models_answer_side_by_side(tmp_path: Path, width: int) -> None:
    engines = {
        "summary": FakeEngine(tmp_path / "summary", template="summarize: {text}"),
        "topic": FakeEngine(
            tmp_path / "topic", template="{text} {source}", labels=("sports", "<b>news</b>", "weather")
        ),
    }

    async def look(running: Running) -> None:
        async with opened(running.url, tmp_path / f"profile-{width}") as page:
            await page.resize(width)
            await page.until("models.length === 2")
            await page.run("byId('compare').click()")
            assert await page.run("[...document.querySelectorAll('textarea')].map((area) => area.name)") == [
                "text",
                "source",
            ]
            await page.run("document.querySelectorAll('textarea')[0].value = 'one <i>two</i>'")
            await page.run("document.querySelectorAll('textarea')[1].value = 'mail'")
            await page.run("byId('send').click()")
            await page.until("running === null && panels[0].figures.textContent !== ''")
            if LOOKED_AT:
                await page.screenshot(Path(LOOKED_AT) / f"page-{width}.png")
            texts = await page.run("panels.map((panel) => panel.answer.textContent)")
            assert texts[0] == "summarize: one <i>two</i>"[::-1]
            assert texts[1] == "one <i>two</i> mail"[::-1]
            assert "tokens/s" in await page.run("panels[0].figures.textContent")
            assert "33.3 %" in await page.run("panels[1].labels.textContent")
            assert "<b>news</b>" in await page.run("panels[1].labels.textContent")
            assert await page.run("document.documentElement.scrollWidth <= innerWidth")
            assert page.problems == []

    with serving(engines) as running:
        asyncio.run(look(running))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_errors_and_stops_are_shown(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "echo")

    async def look(running: Running) -> None:
        async with opened(running.url, tmp_path / "profile") as page:
            await page.until("byId('state').textContent.includes('API key')")
            await page.run("byId('key').value = 'secret'; byId('key').dispatchEvent(new Event('change'))")
            await page.until("models.length === 1")
            await page.run("byId('max_new_tokens').value = '100000'; byId('send').click()")
            await page.until("panels[0].answer.textContent.includes('max_new_tokens is out of range')")
            engine.paused = True
            await page.run("byId('max_new_tokens').value = ''; byId('send').click()")
            await page.until("!byId('stop').disabled")
            while not engine.running:
                await asyncio.sleep(0.01)
            await page.run("byId('stop').click()")
            await page.until("panels[0].figures.textContent.includes('stopped')")
            while engine.running:
                await asyncio.sleep(0.01)

    with serving({"echo": engine}, keys=["secret"]) as running:
        asyncio.run(look(running))

"""Parts of the day: every word of CLDR with every hour, and further words that phones write."""

from __future__ import annotations

import datetime

import pytest
from babel import Locale
from babel.dates import get_period_id

from lora_ft.data.chats.clock import LOCALES, hour_of_day, plain


@pytest.mark.parametrize("name", LOCALES)
def test_word_selects_the_hour_of_every_locale(name: str) -> None:
    locale = Locale.parse(name)
    for names in (locale.day_periods["format"][width] for width in ("abbreviated", "wide")):
        for hour in range(24):
            periods = {"am" if hour < 12 else "pm", get_period_id(datetime.time(hour, 5), locale=locale)}
            for word in (names[period] for period in periods if period in names):
                assert {hour_of_day(reading, plain(word)) for reading in (hour % 12, hour % 12 or 12)} == {hour}


@pytest.mark.parametrize(
    ("hour", "word", "expected"),
    [
        (9, "AM", 9),
        (12, "a.m.", 0),
        (12, "p. m.", 12),
        (0, "午後", 12),
        (1, "PTG", 13),
        (12, "凌晨", 0),
        (12, "晚上", 0),
        (9, "早上", 9),
        (1, "下午", 13),
        (7, "صباحاً", 7),
        (13, "PM", 13),
        (13, "AM", None),
        (1, "Uhr", None),
        (13, "", 13),
    ],
)
def test_word_selects_the_reading_of_an_hour(hour: int, word: str, expected: int | None) -> None:
    assert hour_of_day(hour, plain(word)) == expected

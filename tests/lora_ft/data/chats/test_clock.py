"""Parts of the day: every word of CLDR's beside every hour, and words that phones write besides."""

from __future__ import annotations

import datetime

import pytest
from babel import Locale
from babel.dates import get_period_id

from lora_ft.data.chats.clock import LOCALES, hour_of_day, plain


@pytest.mark.parametrize("name", LOCALES)
def test_every_hour_is_told_from_the_word_beside_it(name: str) -> None:
    locale = Locale.parse(name)
    for names in (locale.day_periods["format"][width] for width in ("abbreviated", "wide")):
        for hour in range(24):
            periods = {"am" if hour < 12 else "pm", get_period_id(datetime.time(hour, 5), locale=locale)}
            for word in (names[period] for period in periods if period in names):
                assert {hour_of_day(written, plain(word)) for written in (hour % 12, hour % 12 or 12)} == {hour}


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
def test_words_pick_the_hour(hour: int, word: str, expected: int | None) -> None:
    assert hour_of_day(hour, plain(word)) == expected

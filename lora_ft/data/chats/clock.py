"""Words for AM and PM and for parts of the day, in all languages of WhatsApp.

CLDR, through babel, knows two kinds: AM and PM (`ÖÖ`, `SA`, `PTG`), and the parts of a day that some languages use
instead (`凌晨`, `晚上`, `de la madrugada`). Both kinds are treated alike: a word maps to the set of hours that it may
mean. An hour on a 12-hour clock has two readings, and the word selects the reading that is among its hours.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping

from babel import Locale

# Languages of WhatsApp on Android and iOS, and regions with different words or dates.
_NAMES = (
    "af am ar ar_EG ar_SA az be bg bn bs ca cs da de el en en_AU en_CA en_GB en_IN en_US es es_AR es_MX es_US et "
    "eu fa fi fil fr fr_CA ga gl gu ha he hi hr hu hy id is it ja ka kk km kn ko ky lo lt lv mk ml mn mr ms my nb "
    "ne nl pa pl ps pt_BR pt_PT ro ru si sk sl sq sr sr_Latn sv sw ta te th tr uk ur uz vi yue zh_CN zh_HK zh_TW "
    "zu"
)
LOCALES = tuple(_NAMES.split())
_HALVES = {"am": frozenset(range(12)), "pm": frozenset(range(12, 24))}
# Words of older CLDR editions, which phones still write.
_OLDER = {
    "am": "a.m.|пр.об.|vorm.|f.m.|e.k.|म.पू.|ಪೂರ್ವಾಹ್ನ|पूर्वाह्न|ਪੂ.ਦੁ.|পূর্বাহ্ণ|முற்பகல்|قبل دوپہر|пре подне|pre podne|"
    "prije podne|dopoludnia|түске дейін|таңкы|დილის|ԿԱ|לפנה״צ|m.|قبل از ظهر|asubuhi|မနက်|上晝",
    "pm": "p.m.|сл.об.|nachm.|e.m.|p.k.|म.उ.|ಅಪರಾಹ್ನ|अपराह्न|ਬਾ.ਦੁ.|অপরাহ্ণ|பிற்பகல்|بعد دوپہر|по подне|po podne|"
    "poslije podne|popoludní|түстен кейін|түштөн кийинки|საღამოს|ԿՀ|אחה״צ|p.|بعد از ظهر|alasiri|下晝",
}
_FARTHEST = 3  # maximum distance of an hour from the word's span, in hours, as in 早上 9:05


def plain(word: str) -> str:
    """Return a case-folded word without blanks, dots, quotes, hyphens, invisible characters and Arabic vowel signs."""
    folded = unicodedata.normalize("NFC", word.casefold())
    return re.sub("[\\s.\u00ad\u200b-\u200f\u2024'’ʼ`´\"“”״׳\u064b-\u0652_-]", "", folded)


def hour_of_day(hour: int, word: str) -> int | None:
    """Return the hour of the day (0..23), or None if the word is unknown or excludes the hour.

    Args:
        hour: Hour as written, 0..23.
        word: Part of the day written next to the hour, as `plain` returns it. Empty on a 24-hour clock.
    """
    if not word:
        return hour
    hours = _HALVES.get(word) or day_periods().get(word)
    if hours is None:
        return None
    readings = [hour] if hour > 12 else [hour % 12, hour % 12 + 12]
    apart = [
        min(min(abs(reading - expected), 24 - abs(reading - expected)) for expected in hours) for reading in readings
    ]
    nearest = min(apart)
    fits = nearest <= (_FARTHEST if hour <= 12 else 0) and apart.count(nearest) == 1
    return readings[apart.index(nearest)] if fits else None


@functools.cache
def day_periods() -> Mapping[str, frozenset[int]]:
    """Return the hours (0..23) of every word, for all languages together."""
    words: dict[str, set[int]] = {}
    for word, hours in _words():
        words.setdefault(plain(word), set()).update(hours)
    return {word: frozenset(hours) for word, hours in words.items() if word}


def _words() -> Iterator[tuple[str, frozenset[int]]]:
    for half, words in _OLDER.items():
        yield from ((word, _HALVES[half]) for word in words.split("|"))
    for name in LOCALES:
        locale = Locale.parse(name)
        spans = _spans(locale)
        for context, widths in locale.day_periods.items():
            for width, periods in widths.items():
                for period, word in periods.items():
                    if period in _HALVES:
                        if width != "narrow" or len(plain(word)) > 1:
                            yield word, _HALVES[period]
                    elif period in spans and context == "format" and width != "narrow":
                        yield word, spans[period]


def _spans(locale: Locale) -> dict[str, frozenset[int]]:
    """Return the hours of each part of the day in a language, by CLDR name (`midnight`, `morning1`, …)."""
    spans: dict[str, frozenset[int]] = {}
    for period, rules in locale.day_period_rules.get(None, {}).items():
        hours: set[int] = set()
        for rule in rules:
            start = rule.get("at", rule.get("from", rule.get("after", 0))) // 3600
            end = rule.get("at", rule.get("before", rule.get("to", 24 * 3600)) - 1) // 3600
            hours.update(hour % 24 for hour in range(start, end + 1 if end >= start else end + 25))
        spans[period] = frozenset(hours)
    return spans

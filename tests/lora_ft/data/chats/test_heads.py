"""Heads: the shapes of Android and iOS, the order of dates, and lines without a head."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.chats.heads import Survey, find_head


def survey(*lines: str) -> Survey:
    surveyed = Survey()
    for line in lines:
        head = find_head(line)
        assert head is not None, line
        surveyed.add(head, line)
    return surveyed


@pytest.mark.parametrize(
    ("line", "date", "clock", "word", "text"),
    [
        ("12/31/23, 10:15 PM - Ana: x", ("12", "31", "23"), (10, 15, 0), "pm", "Ana: x"),
        ("20\u200f/11\u200f/2023، 9:05 ص - Ana: x", ("20", "11", "2023"), (9, 5, 0), "ص", "Ana: x"),
        ("\u200f[20\u200f/11\u200f/2023، 9:05:30 ص] Ana", ("20", "11", "2023"), (9, 5, 30), "ص", "Ana"),
        ("20.11.23 г., 9:05 ч. сл.об. - Ana", ("20", "11", "23"), (9, 5, 0), "слоб", "Ana"),
        ("2023-11-20 13 h 05 - Ana", ("2023", "11", "20"), (13, 5, 0), "", "Ana"),
        ("[2023-11-20 13 h 05 min 30 s] Ana", ("2023", "11", "20"), (13, 5, 30), "", "Ana"),
        ("၂၀/၁၁/၂၃ ၉:၀၅ - Ana", ("20", "11", "23"), (9, 5, 0), "", "Ana"),
        ("09:05 SA, 20/11/23 - Ana", ("20", "11", "23"), (9, 5, 0), "sa", "Ana"),
        ("[00:29, 15/05/2021] Ana", ("15", "05", "2021"), (0, 29, 0), "", "Ana"),
        ("21/8/19, 11:28:51 PM: Ana: x", ("21", "8", "19"), (11, 28, 51), "pm", "Ana: x"),
        ("2023年11月20日 下午1:05 - Ana", ("2023", "11", "20"), (1, 5, 0), "下午", "Ana"),
        ("20/11/23 - 9:05 π.μ. - Ana", ("20", "11", "23"), (9, 5, 0), "πμ", "Ana"),
    ],
)
def test_heads_are_found(
    line: str, date: tuple[str, str, str], clock: tuple[int, int, int], word: str, text: str
) -> None:
    head = find_head(line)
    assert head is not None
    assert (head.date, head.clock, head.word, line[head.end :]) == (date, clock, word, text)


@pytest.mark.parametrize(
    "line", ["", "hello", "12/31: canes", "1/2/2023 was a day", " 31.12.23, 22:15 - Ana: x", "[1]"]
)
def test_other_lines_have_none(line: str) -> None:
    assert find_head(line) is None


@pytest.mark.parametrize("filler", [" ", "-", "1", ".", "[", "\u200e", "1 ", " -", "٠"])
@pytest.mark.parametrize("start", ["", "[", "1", "1/1/20", "1/1/20, 9:05", "[9:05, 1/1/20"])
def test_long_lines_take_linear_time(start: str, filler: str) -> None:
    find_head(start + 200_000 * filler)  # a pattern that backtracks would not come back


@pytest.mark.parametrize(
    ("lines", "order"),
    [
        (["05/06/24, 10:00 - A", "13/06/24, 10:00 - A"], "dmy"),
        (["05/06/24, 10:00 - A", "05/13/24, 10:00 - A"], "mdy"),
        (["23. 11. 10. 00:05 - A", "23. 11. 11. 00:05 - A"], "ymd"),
        (["23/11/10 上午9:05 - A"], "ymd"),
        (["05.06.24, 1:00 PM - A"], "dmy"),  # no language writes months before days with dots
        (["05/06/24, 1:00 PM - A"], "mdy"),
        (["05/06/24, 1:00 pm - A"], "dmy"),
    ],
)
def test_the_order_of_dates_follows_from_all_of_them(lines: list[str], order: str) -> None:
    assert survey(*lines).order == order


def test_an_order_that_convention_decided_is_known_as_such() -> None:
    assert survey("05/06/24, 10:00 - A").is_ambiguous
    assert not survey("05/06/24, 10:00 - A", "13/06/24, 10:00 - A").is_ambiguous
    assert not survey("2024-05-06, 10:00 - A").is_ambiguous
    assert not survey("05/05/24, 10:00 - A").is_ambiguous


def test_thai_years_are_those_of_the_buddhist_calendar() -> None:
    for line in ("20/11/2566 9:05 - A", "20/11/66 9:05 - A"):
        head = find_head(line)
        assert head is not None and survey(line).time_of(head) == 1700471100.0


@given(st.text(st.sampled_from("0123456789/.-:, []APMapm上午г\u200e\u202f٣"), max_size=60))
def test_any_line_is_accepted(line: str) -> None:
    head = find_head(line)
    if head is not None:
        assert 0 < head.end <= len(line)
        surveyed = Survey()
        surveyed.add(head, line)
        surveyed.time_of(head)

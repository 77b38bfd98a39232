"""Pasted heads are distinguished from late messages and from clocks that were set."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.chats.pasted import find_pasted

HOUR, DAY = 3600.0, 86400.0
ANA, BEN, CARL, DORA = range(4)


def test_strangers_from_the_past_are_pasted() -> None:
    assert find_pasted([DAY, DAY - 3 * HOUR, DAY - 2 * HOUR, DAY + 60], [ANA, CARL, DORA, BEN]) == {1, 2}


def test_appointments_to_come_are_pasted() -> None:
    assert find_pasted([0, 60, 7 * DAY, 14 * DAY, 120], [ANA, BEN, CARL, DORA, BEN]) == {2, 3}


def test_messages_that_the_chat_has_already_are_pasted() -> None:
    assert find_pasted([0, 60, DAY, 0, 60, DAY + 60], [ANA, BEN, ANA, ANA, BEN, BEN]) == {3, 4}


def test_late_messages_of_the_chats_own_people_stay() -> None:
    assert find_pasted([0, 60, DAY, HOUR * 3, DAY + 60], [ANA, BEN, ANA, BEN, ANA]) == set()


def test_a_late_message_of_a_newcomer_stays() -> None:
    assert find_pasted([DAY, DAY - 2 * HOUR, DAY + 60], [ANA, CARL, BEN]) == set()
    assert find_pasted([DAY, DAY - 20 * HOUR, DAY + 60], [ANA, CARL, BEN]) == {1}


def test_a_clock_that_was_set_back_stays() -> None:
    times = [DAY + 60 * at for at in range(5)] + [60.0 * at for at in range(5)]
    assert find_pasted(times, [ANA, BEN, ANA, BEN, ANA, CARL, CARL, ANA, BEN, CARL]) == set()


def test_the_hour_that_summer_time_repeats_stays() -> None:
    assert find_pasted([0, HOUR, HOUR + 60, 60, HOUR * 2], [ANA, BEN, ANA, CARL, ANA]) == set()


def test_lines_of_whatsapp_alone_stay() -> None:
    assert find_pasted([DAY, 0, DAY + 60], [ANA, -1, BEN]) == set()
    assert find_pasted([0, 3 * HOUR, 60], [ANA, -1, BEN]) == set()


def test_an_appointment_without_a_sender_is_text() -> None:
    assert find_pasted([0, 7 * DAY, 60], [ANA, -1, BEN]) == {1}


@given(st.lists(st.floats(0, 1e6), max_size=50), st.integers(0, 5))
def test_nothing_is_pasted_in_order_of_time(times: list[float], seed: int) -> None:
    people = [random.Random(seed + at).choice([-1, ANA, BEN, CARL]) for at in range(len(times))]
    assert find_pasted(sorted(times), people) == set()
